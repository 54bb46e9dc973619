// SPDX-License-Identifier: GPL-2.0-or-later

//! The file with the cluster key.

use std::fmt;
use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Read,
    Write, //
};
use std::os::unix::fs::{
    OpenOptionsExt,
    PermissionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};

use mars_core::wire::auth::{
    ClusterKey,
    KeyError, //
};

/// Name of the file below /mars.
pub const KEY_FILE: &str = "cluster-key";

/// Why there is no key.
#[derive(Debug)]
pub enum KeyFileError {
    /// The file can't be read or written.
    Io(PathBuf, io::Error),
    /// There is none.
    Missing(PathBuf),
    /// There is one already, another one.
    Exists(PathBuf),
    /// Others may read it.
    Open(PathBuf, u32),
    /// It has no key in it.
    Bad(PathBuf, KeyError),
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Missing(path) => write!(
                f,
                "there is no cluster key: copy {} from a member of the cluster (mode 0600), for example by scp",
                path.display()
            ),
            Self::Exists(path) => write!(
                f,
                "{} holds another key: remove it first if this host shall belong to another cluster",
                path.display()
            ),
            Self::Open(path, mode) => write!(
                f,
                "others may read {0} (mode {mode:04o}): 'chmod 0600 {0}', and make a new key if it was read",
                path.display()
            ),
            Self::Bad(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for KeyFileError {}

/// Draws a key.
pub fn generate() -> io::Result<ClusterKey> {
    loop {
        // A constant one is as good as impossible.
        if let Ok(key) = ClusterKey::new(crate::stream::nonce()?) {
            return Ok(key);
        }
    }
}

/// Reads a key file. It must be a regular file that only its owner may read.
pub fn load(path: &Path) -> Result<ClusterKey, KeyFileError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing(path.into()),
        _ => KeyFileError::Io(path.into(), error),
    };
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Open(path.into(), mode));
    }
    let mut text = Vec::new();
    file.take(256).read_to_end(&mut text).map_err(failed)?;
    let key = ClusterKey::parse(&text).map_err(|error| KeyFileError::Bad(path.into(), error));
    text.fill(0);
    key
}

/// Writes a key file, durably and all at once. The same key may be there already, another one is not overwritten.
pub fn install(path: &Path, key: &ClusterKey) -> Result<(), KeyFileError> {
    match load(path) {
        Ok(present) if present == *key => return Ok(()),
        Err(KeyFileError::Missing(_)) => {}
        Ok(_) => return Err(KeyFileError::Exists(path.into())),
        Err(error) => return Err(error),
    }
    write_new(path, key).map_err(|error| KeyFileError::Io(path.into(), error))
}

fn write_new(path: &Path, key: &ClusterKey) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".tmp.{}.{name}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let mut write = || {
        file.write_all(&key.to_text())?;
        file.sync_all()?;
        // Unlike a rename, it does not replace what somebody else has just put there.
        fs::hard_link(&temporary, path)
    };
    let result = write();
    let _ = fs::remove_file(&temporary);
    result?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn given_a_drawn_key_when_installed_then_it_is_read_back_and_only_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        assert!(matches!(load(&path), Err(KeyFileError::Missing(_))));
        let key = generate().unwrap();
        install(&path, &key).unwrap();
        assert_eq!(load(&path).unwrap(), key);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read(&path).unwrap().len(), 65);
        install(&path, &key).unwrap();
        assert!(matches!(
            install(&path, &generate().unwrap()),
            Err(KeyFileError::Exists(_))
        ));
        assert_eq!(load(&path).unwrap(), key);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn given_a_key_that_others_may_read_or_that_is_damaged_when_loaded_then_it_is_refused_with_a_remedy(
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        install(&path, &generate().unwrap()).unwrap();
        chmod(&path, 0o644);
        let error = load(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 0600"), "{error}");
        chmod(&path, 0o600);
        fs::write(&path, "short\n").unwrap();
        assert!(matches!(
            load(&path),
            Err(KeyFileError::Bad(_, KeyError::Format))
        ));
        fs::write(&path, vec![b'a'; 1000]).unwrap();
        assert!(matches!(
            load(&path),
            Err(KeyFileError::Bad(_, KeyError::Format))
        ));
    }
}
