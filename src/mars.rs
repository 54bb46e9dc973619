// SPDX-License-Identifier: GPL-2.0-or-later

//! MARS: asynchronous replication of block devices over any distance.
//!
//! The entry of the module: parameters, and the order in which things start and stop. What MARS is stands in
//! `src/core`, what runs in `src/engine`, what touches the kernel in `src/sys`.

#![crate_name = "mars"]

use kernel::{
    prelude::*,
    sync::Arc, //
};

#[cfg_attr(
    not(MARS_INJECT),
    allow(
        clippy::bind_instead_of_map,
        clippy::unnecessary_lazy_evaluations,
        reason = "without the injector its points are the constant Ok"
    )
)]
mod engine;
#[allow(
    dead_code,
    reason = "what has no user here is used by the test of the layer, tests/kmod-selftest"
)]
mod sys;

use engine::{
    cluster,
    env::Env,
    proc,
    tunables, //
};
use mars_core::name::Name;
use sys::{
    bio::BioSetGuard,
    notifier::RebootNotifier,
    sysctl::Sysctl,
    thread::Thread, //
};

/// Version of module and tools.
pub(crate) const VERSION: &str = "0.1.0";

module! {
    type: Mars,
    name: "mars",
    authors: ["The MARS in Rust authors"],
    description: "Asynchronous replication of block devices over any distance",
    license: "GPL",
    params: {
        mars_port: u32 {
            default: 7777,
            description: "Base port: metadata; logs are on the next port, sync on the one after",
        },
    },
}

/// The loaded module. Fields drop in this order: nobody is told or asks any more, then the loop ends everything that it
/// started (`rmmod` gets here only when no device is open), then what all of it used.
struct Mars {
    #[cfg(MARS_INJECT)]
    _release: engine::inject::Release,
    _notifier: RebootNotifier,
    _proc: Sysctl,
    _cluster: Thread,
    _env: Arc<Env>,
    _bios: BioSetGuard,
    #[cfg(MARS_INJECT)]
    _injector: engine::inject::Injector,
}

impl kernel::Module for Mars {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        #[cfg(MARS_INJECT)]
        let injector = engine::inject::Injector::new()?;
        let bios = sys::bio::init()?;
        let node = sys::host::nodename()?;
        let Some(me) = Name::new(&node) else {
            pr_err!("the host name {:?} can't be used: only letters, digits, '_' and '-', no dots; set another in /etc/hostname\n", core::str::from_utf8(&node));
            return Err(EINVAL);
        };
        // No path below it may lead elsewhere.
        let is_link =
            sys::dir::stat(c"/mars").is_ok_and(|s| s.kind == sys::dir::EntryKind::Symlink);
        match sys::dir::is_mount_root(c"/mars") {
            Ok(_) if is_link => {
                pr_err!("/mars is a symlink; mount the file system at /mars itself ('mount --bind' helps) and load the module again\n");
                return Err(EINVAL);
            }
            Ok(true) => (),
            Ok(false) => {
                pr_err!("/mars must be a mount point of a file system of its own (ext4 is best); mount one and load the module again\n");
                return Err(EINVAL);
            }
            Err(e) => {
                pr_err!("/mars can't be used ({:?}); make the directory, mount a file system of its own there (ext4 is best) and load the module again\n", e);
                return Err(e);
            }
        }
        let port = u16::try_from(*module_parameters::mars_port.value_ref())
            .ok()
            .filter(|p| *p > 0 && *p < u16::MAX - 2);
        let Some(port) = port else {
            pr_err!(
                "mars_port must be from 1 to 65532 (the usual one is {})\n",
                tunables::DEFAULT_PORT
            );
            return Err(EINVAL);
        };
        let env = Env::new(me, port)?;
        let cluster = cluster::spawn(env.clone())?;
        let proc = proc::register(&env)?;
        let e = env.clone();
        let notifier = RebootNotifier::register(move || e.stop())?;
        pr_info!("version {} on host {}\n", VERSION, me.as_str());
        Ok(Self {
            #[cfg(MARS_INJECT)]
            _release: engine::inject::Release,
            _notifier: notifier,
            _proc: proc,
            _cluster: cluster,
            _env: env,
            _bios: bios,
            #[cfg(MARS_INJECT)]
            _injector: injector,
        })
    }
}
