// SPDX-License-Identifier: GPL-2.0-or-later

//! The cluster loop: reads the tree, tells what this host is, starts and ends peers and resources.
//!
//! It never waits for a disk, a peer or a resource: those have threads of their own.

use kernel::{
    prelude::*,
    str::CString,
    sync::Arc, //
};

use mars_core::name::Name;

use crate::{
    engine::{
        control,
        env::Env,
        inject,
        member::Member,
        paths,
        peer::{
            self,
            Peer, //
        },
        reserve,
        server::Server,
        text,
        tunables, //
    },
    sys::{
        thread::{
            Thread,
            ThreadCtx, //
        },
        time, //
    },
    VERSION, //
};

/// The time is said anew after so many seconds, and with each scan.
const TIME_EVERY: u32 = 5;

/// A resource of this host: its control thread, and what it shares.
struct Resource {
    control: Thread,
    member: Arc<Member>,
}

/// The loop's own state. Fields drop in this order: nobody may ask any more, then nobody is asked, then resources end.
struct Cluster {
    servers: KVec<Server>,
    peers: KVec<Peer>,
    resources: KVec<Resource>,
    env: Arc<Env>,
    next_server_try: u64,
}

/// Spawns the loop. When it is stopped it ends everything that it started.
pub(crate) fn spawn(env: Arc<Env>) -> Result<Thread> {
    Thread::spawn(c"mars_main", move |ctx| {
        let mut c = Cluster {
            servers: KVec::new(),
            peers: KVec::new(),
            resources: KVec::new(),
            env,
            next_server_try: 0,
        };
        while !ctx.should_stop() {
            c.round(ctx);
        }
        c.finish();
    })
}

impl Cluster {
    fn round(&mut self, ctx: &ThreadCtx) {
        inject::pass!(ClusterRound);
        let env = self.env.clone();
        if let Err(e) = env.store.scan() {
            crate::engine::text::warn_limited(format_args!(
                "reading /mars failed: {e:?}; is it mounted?"
            ));
        }
        if env.is_settled() {
            if let Err(e) = env.store.say_unheard(|path| peer::leads(&env, path)) {
                crate::engine::text::warn_limited(format_args!("writing to /mars failed: {e:?}"));
            }
        }
        env.store.forget_old();
        env.refresh();
        self.serve();
        self.say_alive(true);
        if let Err(e) = self.match_peers() {
            crate::engine::text::warn_limited(format_args!("starting a peer failed: {e:?}"));
        }
        if let Err(e) = self.match_resources() {
            crate::engine::text::warn_limited(format_args!("starting a resource failed: {e:?}"));
        }
        env.kick_members();
        // A look at the facts each second; a scan at once when somebody pulls the trigger.
        let mut rest = tunables::SCAN_INTERVAL_SEC.get();
        let mut silent = 0;
        while rest > 0 && !ctx.should_stop() {
            rest -= 1;
            if env.kick.wait_timeout(1000) {
                return;
            }
            // Each sign of life is a link made anew on every host: no more of them than anybody needs.
            silent += 1;
            self.say_alive(rest > 0 && silent % TIME_EVERY == 0);
        }
    }

    /// Opens the ports; tried again from time to time when one is in use.
    fn serve(&mut self) {
        if self.servers.len() == 3 || time::mono_ns() < self.next_server_try {
            return;
        }
        self.servers.clear();
        for offset in 0..3 {
            let r = Server::start(self.env.clone(), offset)
                .and_then(|s| Ok(self.servers.push(s, GFP_KERNEL)?));
            if r.is_err() {
                self.servers.clear();
                self.next_server_try = time::mono_ns().saturating_add(10_000_000_000);
                return;
            }
        }
    }

    /// Signs of life and facts about this host.
    fn say_alive(&self, with_time: bool) {
        let env = &self.env;
        let level = env.space.level();
        env.space.look(true);
        if env.space.level() != level {
            env.kick_members();
        }
        let say = |key: &str, value: core::fmt::Arguments<'_>| {
            let r =
                CString::try_from_fmt(format_args!("actual-{}/{key}", env.me)).and_then(|path| {
                    let value = CString::try_from_fmt(value)?;
                    env.store.set(text::of(&path), text::of(&value))
                });
            if let Err(e) = r {
                crate::engine::text::warn_limited(format_args!(
                    "writing to /mars failed: {e:?}; is it full or read-only?"
                ));
            }
        };
        if env.store.get("uuid").is_none() || paths::need_mounted().is_err() {
            // Nothing is written before this host belongs to a cluster.
            return;
        }
        if with_time {
            say("time", format_args!("{}", env.clock.now()));
        }
        say("alive", format_args!("1"));
        say("tree", format_args!("0.1"));
        say("features", format_args!("4,5,0x00040000"));
        say("usable", format_args!("4,5,0x00040000"));
        say("buildtag", format_args!("mars-rust-{VERSION}"));
        say("module", format_args!("{VERSION}"));
        if let Some(block) = reserve::disk_block() {
            say("log-block", format_args!("{block}"));
        }
        say("emergency", format_args!("{}", env.space.level()));
        say("used-log-digest", format_args!("262144"));
        say("used-net-digest", format_args!("262144"));
        say("used-log-compression", format_args!("0"));
        say("used-net-compression", format_args!("0"));
        let space = env.space.space();
        if space.total > 0 {
            say("rest-space", format_args!("{}", space.free >> 30));
            say("total-space", format_args!("{}", space.total >> 30));
        }
        if env.space.level() <= 1 {
            reserve::fill();
        }
    }

    /// Follows every host of the address book.
    fn match_peers(&mut self) -> Result {
        let env = self.env.clone();
        let mut wanted: KVec<Name> = KVec::new();
        let mut failed: Result = Ok(());
        if env.key().is_some() {
            env.store.for_each("ips/ip-", |host, _| {
                if let Some(h) = Name::new(host.as_bytes()).filter(|h| *h != env.me) {
                    if let Err(e) = wanted.push(h, GFP_KERNEL) {
                        failed = Err(e.into());
                    }
                }
            })?;
        }
        failed?;
        for p in &self.peers {
            if !wanted.contains(&p.name) {
                p.request_stop();
            }
        }
        self.peers.retain(|p| wanted.contains(&p.name));
        for name in &wanted {
            if !self.peers.iter().any(|p| p.name == *name) {
                self.peers.reserve(1, GFP_KERNEL)?;
                self.peers
                    .push(Peer::start(env.clone(), *name)?, GFP_KERNEL)?;
            }
        }
        Ok(())
    }

    /// Runs every resource of which this host is a member.
    fn match_resources(&mut self) -> Result {
        let env = self.env.clone();
        let mut wanted: KVec<Name> = KVec::new();
        let mut failed: Result = Ok(());
        let suffix = CString::try_from_fmt(format_args!("/data-{}", env.me))?;
        env.store.for_each("resource-", |rest, _| {
            if let Some(name) = rest
                .strip_suffix(text::of(&suffix))
                .and_then(|n| Name::new(n.as_bytes()))
            {
                if let Err(e) = wanted.push(name, GFP_KERNEL) {
                    failed = Err(e.into());
                }
            }
        })?;
        failed?;
        // A resource that is no longer ours detaches by itself (its data link is gone); then its thread may end.
        self.resources.retain(|r| {
            let gone = !wanted.contains(&r.member.name) && r.member.attached.lock().bdev.is_none();
            if gone {
                env.remove_member(&r.member.name);
            }
            !gone
        });
        for name in &wanted {
            if !self.resources.iter().any(|r| r.member.name == *name) {
                self.resources.reserve(1, GFP_KERNEL)?;
                let member = Member::new(*name, env.clone())?;
                env.add_member(member.clone())?;
                let control =
                    control::spawn(member.clone()).inspect_err(|_| env.remove_member(name))?;
                self.resources
                    .push(Resource { control, member }, GFP_KERNEL)?;
            }
        }
        Ok(())
    }

    /// Ends everything, in parallel where it can.
    fn finish(&mut self) {
        self.env.stop();
        for p in &self.peers {
            p.request_stop();
        }
        for r in &self.resources {
            r.control.request_stop();
            r.member.kick.signal();
        }
        // Resources first: while they write back and tell the tree, peers may still fetch it.
        for r in self.resources.drain_all() {
            self.env.remove_member(&r.member.name);
        }
        self.servers.clear();
        self.peers.clear();
        let me = self.env.me;
        if self.env.store.get("uuid").is_some() {
            let _ = CString::try_from_fmt(format_args!("actual-{me}/alive"))
                .and_then(|p| self.env.store.set(text::of(&p), "0"));
        }
    }
}
