// SPDX-License-Identifier: GPL-2.0-or-later

//! The key with which hosts prove that they belong to the cluster: `/mars/cluster-key`, 64 hex digits, mode 0600, never
//! replicated.

use crate::cli::KeyArgs;
use crate::error::{Failure, Result, Trying};
use crate::tree::store::Store;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Name of the file.
pub const FILE: &str = "cluster-key";

/// A cluster key. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// A new random key.
    pub fn random() -> Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)
            .map_err(|e| Failure::refused(format!("the system gives no random bytes: {e}")))?;
        Ok(Self(key))
    }

    /// Parses 64 hex digits, blanks around are allowed.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut key = [0; 32];
        for (i, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(Self(key))
    }

    /// The 64 hex digits.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The key given on the command line, if any.
    pub fn from_args(args: &KeyArgs) -> Result<Option<Self>> {
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
        Self::parse(&text).map(Some).ok_or_else(|| {
            Failure::usage(format!(
                "what comes from {from} is no cluster key: 64 hexadecimal digits are expected"
            ))
            .hint("`marsadm show-key` on a host of the cluster prints it")
        })
    }

    /// The key of this host; `None` if there is none.
    pub fn load(store: &Store) -> Result<Option<Self>> {
        let path = store.path(FILE);
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.trying(|| format!("cannot read {}", path.display()))?,
        };
        Self::parse(&text).map(Some).ok_or_else(|| {
            Failure::environment(format!(
                "{} is damaged: 64 hexadecimal digits are expected",
                path.display()
            ))
            .hint("bring it again from another host of the cluster (`marsadm show-key` there)")
        })
    }

    /// Stores the key durably.
    pub fn store(&self, store: &Store) -> Result<()> {
        let path = store.path(FILE);
        if store.is_dry_run() {
            crate::out::dry(format_args!("would write {}", path.display()));
            return Ok(());
        }
        let temp = path.with_file_name(format!(".tmp.{}.{FILE}", std::process::id()));
        let write = || -> io::Result<()> {
            let _ = fs::remove_file(&temp);
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temp)?;
            writeln!(file, "{}", self.to_hex())?;
            file.sync_all()?;
            fs::rename(&temp, &path)?;
            fs::File::open(store.root())?.sync_all()
        };
        write().trying(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_both_ways_and_rubbish_is_refused() {
        let key = Key::random().unwrap();
        assert_eq!(
            Key::parse(&format!(" {}\n", key.to_hex())),
            Some(key.clone())
        );
        assert_eq!(Key::parse(&key.to_hex().to_uppercase()), Some(key.clone()));
        assert_eq!(Key::parse(&key.to_hex()[1..]), None);
        assert_eq!(Key::parse(&"x".repeat(64)), None);
        assert_eq!(format!("{key:?}"), "Key(…)");
    }
}
