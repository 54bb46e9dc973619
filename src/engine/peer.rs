// SPDX-License-Identifier: GPL-2.0-or-later

//! Following the tree of another member: one thread a peer, one connection, which asks "what is newer than what I have?"
//! and gets the answer when there is one.

use kernel::{
    prelude::*,
    str::CString,
    sync::Arc, //
};

use mars_core::{
    lamport::LamportTime,
    name::Name,
    tree::path::TreePath,
    wire::message::{
        meta::{
            Entry,
            GetTree,
            Tree, //
        },
        Message, //
    }, //
};

use crate::{
    engine::{
        clock::{
            was_set,
            Clock, //
        },
        conn::{
            Conn,
            Purpose, //
        },
        env::Env,
        inject,
        paths,
        store::{
            Merged,
            Value, //
        },
        text::{
            self,
            warn_limited, //
        },
        tunables, //
    },
    sys::{
        thread::{
            Thread,
            ThreadCtx, //
        },
        time, //
    }, //
};

/// Pause after a connection failed, and the longest that it grows to.
const RETRY_MS: u32 = 500;
const RETRY_MAX_MS: u32 = 5_000;
/// The whole tree is asked for again after this time.
const FULL_NS: u64 = 120_000_000_000;

/// A peer that is followed; stops when dropped.
pub(crate) struct Peer {
    /// Its name.
    pub(crate) name: Name,
    thread: Thread,
}

impl Peer {
    /// Starts following `name`.
    pub(crate) fn start(env: Arc<Env>, name: Name) -> Result<Self> {
        let thread_name = CString::try_from_fmt(format_args!("mars_peer/{name}"))?;
        let thread = Thread::spawn(&thread_name, move |ctx| follow(ctx, &env, name))?;
        Ok(Self { name, thread })
    }

    /// Asks the thread to end, without waiting for it.
    pub(crate) fn request_stop(&self) {
        self.thread.request_stop();
    }
}

fn follow(ctx: &ThreadCtx, env: &Arc<Env>, name: Name) {
    let mut pause = RETRY_MS;
    let mut since = 0;
    let mut instance = 0;
    let mut full_at = time::mono_ns();
    let mut clock = Clock::offset();
    while !ctx.should_stop() {
        let Ok(mut conn) = Conn::dial(env, &name, Purpose::Meta) else {
            ctx.sleep_ms(pause);
            pause = pause.saturating_mul(2).min(RETRY_MAX_MS);
            continue;
        };
        pause = RETRY_MS;
        while !ctx.should_stop() {
            inject::pass!(PeerRound);
            // What was refused once, perhaps because of a wrong clock, or vanished from the disk, is sent again only on demand.
            let offset = Clock::offset();
            if time::mono_ns().saturating_sub(full_at) > FULL_NS || was_set(offset, clock) {
                clock = offset;
                full_at = time::mono_ns();
                since = 0;
            }
            let whole = since == 0;
            match exchange(env, &mut conn, &mut since, &mut instance) {
                Ok(Heard { ahead: true, .. }) => {
                    env.heard(&name);
                    env.set_ahead(&name, true);
                    env.clock.trust(false);
                    env.report_peer(&name, Some("its clock is more than 30 days ahead of this host's, so what it says can't be taken; set the clocks right (if that does not help, reload the module there)"));
                }
                Ok(Heard { doubts, .. }) => {
                    env.heard(&name);
                    if whole && env.is_ahead(&name) {
                        env.set_ahead(&name, false);
                        env.report_peer(&name, None);
                    }
                    if whole || !doubts.is_empty() {
                        let mut resources = KVec::new();
                        for r in doubts.iter().filter_map(|path| resource_of(text::of(path))) {
                            if resources.push(r, GFP_KERNEL).is_err() {
                                // No memory to know it: asked again.
                                since = 0;
                            }
                        }
                        env.set_doubts(&name, resources);
                    }
                    if env.is_ahead(&name) {
                        // What was refused has to come once more, before this host counts as knowing it.
                        since = 0;
                        continue;
                    }
                    if whole && !was_set(Clock::offset(), clock) && !env.is_any_ahead() {
                        env.clock.trust(true);
                    }
                    if doubts.is_empty() && !env.is_doubted(&name, |_| true) {
                        env.merged(&name);
                    } else if doubts.is_empty() {
                        since = 0;
                    }
                    for path in &doubts {
                        insist(env, &name, text::of(path));
                    }
                }
                Err(_) => {
                    ctx.sleep_ms(RETRY_MS);
                    break;
                }
            }
        }
    }
}

/// What came of asking a peer.
struct Heard {
    /// Its clock is too far ahead of ours.
    ahead: bool,
    /// What it says of the role, where which word is newer can't be known.
    doubts: KVec<CString>,
    /// A resource has changed.
    news: bool,
    /// Something could not be written.
    failed: Result,
}

impl Heard {
    fn new() -> Self {
        Self {
            ahead: false,
            doubts: KVec::new(),
            news: false,
            failed: Ok(()),
        }
    }

    /// Merges one link.
    ///
    /// # Errors
    ///
    /// Out of memory. What can't be written is noted: the others may still be taken.
    fn take(&mut self, env: &Env, peer: &Name, e: &Entry<'_>) -> Result {
        let r = inject::at!(MergeLink)
            .and_then(|()| env.store.merge_one(peer, e.path, e.value, e.stamp));
        match r {
            Ok(Merged::News) => self.news |= e.path.starts_with("resource-"),
            Ok(Merged::Doubt) => self.doubts.push(
                CString::try_from_fmt(format_args!("{}", e.path))?,
                GFP_KERNEL,
            )?,
            Ok(Merged::No) => (),
            Err(e) => self.failed = Err(e),
        }
        Ok(())
    }
}

/// Whether a link says what is on the disk of this host.
fn is_own(env: &Env, e: &Entry<'_>) -> bool {
    TreePath::parse(e.path.as_bytes()).is_ok_and(|p| p.is_of_disk(&env.me))
}

/// A size that is newer than the one that is known here. It is merged last: it counts together with what its host says of the
/// disk of this one, which may come in a later part.
struct Size {
    path: CString,
    value: KVec<u8>,
    stamp: LamportTime,
}

impl Size {
    /// There is one for each resource of this host at most.
    fn put(list: &mut KVVec<Size>, e: &Entry<'_>) -> Result {
        let mut value = KVec::new();
        value.extend_from_slice(e.value, GFP_KERNEL)?;
        let size = Self {
            path: CString::try_from_fmt(format_args!("{}", e.path))?,
            value,
            stamp: e.stamp,
        };
        match list.iter_mut().find(|s| text::of(&s.path) == e.path) {
            Some(old) => *old = size,
            None => list.push(size, GFP_KERNEL)?,
        }
        Ok(())
    }

    fn is_news(env: &Env, e: &Entry<'_>) -> bool {
        let of_size = TreePath::parse(e.path.as_bytes()).is_ok_and(|p| p.is_of_size());
        let other = |v: &Value| v.as_bytes() != e.value;
        of_size
            && env.store.get(e.path).as_ref().is_some_and(other)
            && env.store.stamp(e.path).is_some_and(|t| e.stamp > t)
    }

    /// What this host itself has said of more than the size that it knew is taken back first.
    fn merge(&self, heard: &mut Heard, env: &Env, peer: &Name) -> Result {
        let path = text::of(&self.path);
        let member = resource_of(path).and_then(|resource| env.member(&resource));
        if let Some(m) = member {
            let void = if m.designated() == Some(env.me) {
                Ok(())
            } else {
                m.forget_void_resize()
            };
            if let Err(e) = void.and_then(|()| paths::sync_resource_dir(&m.name)) {
                heard.failed = Err(e);
                return Ok(());
            }
        }
        let e = Entry {
            path,
            value: &self.value,
            stamp: self.stamp,
        };
        heard.take(env, peer, &e)
    }
}

/// The resource that a link is of.
fn resource_of(path: &str) -> Option<Name> {
    let rest = path.strip_prefix("resource-")?;
    Name::new(rest.split('/').next()?.as_bytes())
}

/// Whether this host is running primary of the resource that a link is of, and designated.
pub(crate) fn leads(env: &Env, path: &str) -> bool {
    resource_of(path)
        .and_then(|resource| env.member(&resource))
        .is_some_and(|m| {
            let runs = m.attached.lock().primary;
            runs && m.designated() == Some(env.me)
        })
}

/// A running primary knows that it is one: where it can't be known which word about that is newer, its own is.
fn insist(env: &Env, peer: &Name, path: &str) {
    if !leads(env, path) || !env.clock.is_trusted() {
        warn_limited(format_args!("host {peer} says something else than this one in {path}, and one of the two was written by a clock that was more than 30 days ahead"));
        return;
    }
    if let Err(e) = env.store.repeat(path.as_bytes()) {
        warn_limited(format_args!("writing to /mars failed: {e:?}"));
    }
}

/// Asks once, and merges what comes.
fn exchange(env: &Env, conn: &mut Conn, since: &mut u64, instance: &mut u64) -> Result<Heard> {
    let ask = GetTree {
        since: *since,
        instance: *instance,
        wait_ms: tunables::LONG_POLL_MS,
        now: env.clock.now(),
    };
    let peer = conn.peer;
    let mut heard = Heard::new();
    let mut sizes = KVVec::new();
    let mut own_failed = false;
    let mut payload = conn.call(&ask, tunables::LONG_POLL_MS)?;
    loop {
        let tree = Tree::decode(payload).map_err(|_| EPROTO)?;
        heard.ahead |= !env.clock.saw(tree.now);
        // First what is said of the disk of this host: everything else counts together with that.
        for own in [true, false] {
            for entry in tree.entries() {
                match entry {
                    Ok(e) if is_own(env, &e) != own => (),
                    Ok(e) if Size::is_news(env, &e) => Size::put(&mut sizes, &e)?,
                    Ok(e) => {
                        heard.take(env, &peer, &e)?;
                        own_failed |= own && heard.failed.is_err();
                    }
                    Err(e) if own => {
                        warn_limited(core::format_args!("host {peer} sent an invalid entry: {e}"))
                    }
                    Err(_) => (),
                }
            }
        }
        if !tree.more {
            let (generation, theirs) = (tree.generation, tree.instance);
            // Else all is asked for again.
            for size in sizes.iter().filter(|_| !own_failed) {
                size.merge(&mut heard, env, &peer)?;
            }
            if heard.news {
                env.kick_members();
            }
            if let Err(e) = heard.failed {
                warn_limited(core::format_args!(
                    "what host {peer} tells can't be written to /mars: {e:?}"
                ));
                return Err(e);
            }
            *since = generation;
            *instance = theirs;
            return Ok(heard);
        }
        payload = conn.next_part()?;
    }
}
