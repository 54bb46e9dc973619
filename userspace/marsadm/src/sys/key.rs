// SPDX-License-Identifier: GPL-2.0-or-later

//! Where the key of the cluster comes from. Its file `/mars/cluster-key` is `mars-net`'s.

use crate::cli::KeyArgs;
use crate::error::{Failure, Result, Trying};
use crate::out;
use crate::tree::store::Store;
use mars_net::key::{self, KeyFileError, KEY_FILE};
use mars_net::ClusterKey;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

/// Path of the key file.
pub fn path(store: &Store) -> PathBuf {
    store.path(KEY_FILE)
}

/// A new random key.
pub fn random() -> Result<ClusterKey> {
    key::generate().trying(|| "the system gives no random bytes".into())
}

/// The key given on the command line, if any.
pub fn from_args(args: &KeyArgs) -> Result<Option<ClusterKey>> {
    let (text, from) = match (&args.key_file, &args.key) {
        (Some(path), _) if path.as_os_str() == "-" => {
            let mut text = String::new();
            io::stdin()
                .take(4096)
                .read_to_string(&mut text)
                .trying(|| "cannot read the key from the standard input".into())?;
            (text, "the standard input".to_owned())
        }
        (Some(path), _) => {
            let text = fs::read_to_string(path)
                .trying(|| format!("cannot read the key file {}", path.display()))?;
            (text, path.display().to_string())
        }
        (None, Some(text)) => (text.clone(), "the command line".to_owned()),
        (None, None) => return Ok(None),
    };
    ClusterKey::parse(text.trim().as_bytes())
        .map(Some)
        .map_err(|e| {
            Failure::usage(format!("what comes from {from} is no key: {e}"))
                .hint("`marsadm show-key` on a host of the cluster prints it")
        })
}

/// The key of this host; `None` if there is none.
pub fn load(store: &Store) -> Result<Option<ClusterKey>> {
    match key::load(&path(store)) {
        Ok(key) => Ok(Some(key)),
        Err(KeyFileError::Missing(_)) => Ok(None),
        Err(e) => Err(Failure::environment(e.to_string())),
    }
}

/// Stores the key durably. Another one that is there already is not overwritten.
pub fn store(store: &Store, key: &ClusterKey) -> Result<()> {
    let path = path(store);
    if store.is_dry_run() {
        out::info(format_args!("would write {}", path.display()));
        return Ok(());
    }
    key::install(&path, key).map_err(|e| Failure::refused(e.to_string()))
}
