// SPDX-License-Identifier: GPL-2.0-or-later

//! Absolute paths below `/mars`. Only names with a checked grammar go in, so none can lead elsewhere (P6).

use core::format_args;

use kernel::{
    prelude::*,
    str::CString, //
};

use mars_core::{
    log::LogName,
    name::Name, //
};

use crate::{
    engine::inject,
    sys::dir, //
};

/// Root of the tree; a mount point of its own.
pub(crate) const ROOT: &CStr = c"/mars";

/// `ENODEV` if somebody has unmounted `/mars`: an empty directory is no tree without any link, and what is written would go to the
/// file system that it is on.
pub(crate) fn need_mounted() -> Result {
    if dir::is_mount_root(ROOT)? {
        Ok(())
    } else {
        Err(ENODEV)
    }
}

/// The cluster key: 64 hex digits, mode 0600, never replicated.
pub(crate) const KEY: &CStr = c"/mars/cluster-key";

/// Room that is given up when a link can't be written otherwise.
pub(crate) const RESERVE: &CStr = c"/mars/reserve";

/// `/mars/<relative>`.
pub(crate) fn absolute(relative: &str) -> Result<CString> {
    CString::try_from_fmt(format_args!("/mars/{relative}"))
}

/// A log file.
pub(crate) fn log(resource: &Name, log: &LogName) -> Result<CString> {
    CString::try_from_fmt(format_args!("/mars/resource-{resource}/{log}"))
}

/// Whether opening a file failed because there is none: the tombstone of a deleted one is a link.
pub(crate) fn is_absent(e: Error) -> bool {
    e == ENOENT || e == ELOOP
}

/// The directory of a resource.
pub(crate) fn resource(resource: &Name) -> Result<CString> {
    CString::try_from_fmt(format_args!("/mars/resource-{resource}"))
}

/// Makes durable what `host` says in the directory `actual-<host>` of a resource.
pub(crate) fn sync_actual_dir(name: &Name, host: &Name) -> Result {
    inject::at!(DirSync)?;
    let path = CString::try_from_fmt(format_args!("/mars/resource-{name}/actual-{host}"))?;
    dir::sync_dir(&path)?;
    inject::at!(DirSynced)
}

/// Makes creations, renames and removals in the directory of a resource durable.
pub(crate) fn sync_resource_dir(name: &Name) -> Result {
    inject::at!(DirSync)?;
    dir::sync_dir(&resource(name)?)?;
    inject::at!(DirSynced)
}
