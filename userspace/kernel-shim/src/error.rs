// SPDX-License-Identifier: GPL-2.0-or-later

//! Kernel errors, see `rust/kernel/error.rs`.

use crate::alloc::AllocError;
use core::fmt;
use core::num::{
    NonZeroI32,
    TryFromIntError, //
};

/// The largest errno.
const MAX_ERRNO: i32 = 4095;

/// Generic integer kernel error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error(NonZeroI32);

impl Error {
    /// Creates an error from a (negative) kernel error code; `EINVAL` if it is none.
    pub fn from_errno(errno: i32) -> Error {
        Self::try_from_errno(errno).unwrap_or(code::EINVAL)
    }

    const fn try_from_errno(errno: i32) -> Option<Error> {
        if errno < -MAX_ERRNO || errno >= 0 {
            return None;
        }
        match NonZeroI32::new(errno) {
            Some(e) => Some(Error(e)),
            None => None,
        }
    }

    /// Returns the (negative) kernel error code.
    pub fn to_errno(self) -> i32 {
        self.0.get()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match code::name(*self) {
            Some(name) => f.debug_tuple(name).finish(),
            None => f.debug_tuple("Error").field(&self.0).finish(),
        }
    }
}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Error {
        code::ENOMEM
    }
}

impl From<TryFromIntError> for Error {
    fn from(_: TryFromIntError) -> Error {
        code::EINVAL
    }
}

impl From<core::str::Utf8Error> for Error {
    fn from(_: core::str::Utf8Error) -> Error {
        code::EINVAL
    }
}

impl From<fmt::Error> for Error {
    fn from(_: fmt::Error) -> Error {
        code::EINVAL
    }
}

/// A [`core::result::Result`] with an [`Error`].
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// The error codes of x86-64 Linux.
pub mod code {
    macro_rules! codes {
        ($($name:ident $number:literal $doc:literal,)*) => {
            $(
                #[doc = $doc]
                pub const $name: super::Error = match super::Error::try_from_errno(-$number) {
                    Some(e) => e,
                    None => panic!("not an errno"),
                };
            )*

            pub(super) fn name(e: super::Error) -> Option<&'static str> {
                $(
                    if e == $name {
                        return Some(stringify!($name));
                    }
                )*
                None
            }
        };
    }

    codes! {
        EPERM 1 "Operation not permitted.",
        ENOENT 2 "No such file or directory.",
        ESRCH 3 "No such process.",
        EINTR 4 "Interrupted system call.",
        EIO 5 "I/O error.",
        ENXIO 6 "No such device or address.",
        E2BIG 7 "Argument list too long.",
        EBADF 9 "Bad file number.",
        EAGAIN 11 "Try again.",
        ENOMEM 12 "Out of memory.",
        EACCES 13 "Permission denied.",
        EFAULT 14 "Bad address.",
        ENOTBLK 15 "Block device required.",
        EBUSY 16 "Device or resource busy.",
        EEXIST 17 "File exists.",
        EXDEV 18 "Cross-device link.",
        ENODEV 19 "No such device.",
        ENOTDIR 20 "Not a directory.",
        EISDIR 21 "Is a directory.",
        EINVAL 22 "Invalid argument.",
        EFBIG 27 "File too large.",
        ENOSPC 28 "No space left on device.",
        ESPIPE 29 "Illegal seek.",
        EROFS 30 "Read-only file system.",
        EPIPE 32 "Broken pipe.",
        EDOM 33 "Math argument out of domain of func.",
        ERANGE 34 "Math result not representable.",
        EDEADLK 35 "Resource deadlock would occur.",
        ENAMETOOLONG 36 "File name too long.",
        ENOSYS 38 "Invalid system call number.",
        ENOTEMPTY 39 "Directory not empty.",
        ELOOP 40 "Too many symbolic links encountered.",
        ENOMSG 42 "No message of desired type.",
        EBADE 52 "Invalid exchange.",
        EBADRQC 56 "Invalid request code.",
        ENODATA 61 "No data available.",
        ETIME 62 "Timer expired.",
        ENOLINK 67 "Link has been severed.",
        EPROTO 71 "Protocol error.",
        EBADMSG 74 "Not a data message.",
        EOVERFLOW 75 "Value too large for defined data type.",
        ENOTUNIQ 76 "Name not unique on network.",
        EBADFD 77 "File descriptor in bad state.",
        EREMCHG 78 "Remote address changed.",
        EILSEQ 84 "Illegal byte sequence.",
        ERESTART 85 "Interrupted system call should be restarted.",
        EMSGSIZE 90 "Message too long.",
        EPROTONOSUPPORT 93 "Protocol not supported.",
        EOPNOTSUPP 95 "Operation not supported on transport endpoint.",
        EADDRINUSE 98 "Address already in use.",
        EADDRNOTAVAIL 99 "Cannot assign requested address.",
        ENETDOWN 100 "Network is down.",
        ENETUNREACH 101 "Network is unreachable.",
        ECONNABORTED 103 "Software caused connection abort.",
        ECONNRESET 104 "Connection reset by peer.",
        ENOBUFS 105 "No buffer space available.",
        ENOTCONN 107 "Transport endpoint is not connected.",
        ESHUTDOWN 108 "Cannot send after transport endpoint shutdown.",
        ETIMEDOUT 110 "Connection timed out.",
        ECONNREFUSED 111 "Connection refused.",
        EHOSTDOWN 112 "Host is down.",
        EHOSTUNREACH 113 "No route to host.",
        EALREADY 114 "Operation already in progress.",
        EINPROGRESS 115 "Operation now in progress.",
        ESTALE 116 "Stale file handle.",
        EUCLEAN 117 "Structure needs cleaning.",
        EREMOTEIO 121 "Remote I/O error.",
        EDQUOT 122 "Quota exceeded.",
        ENOMEDIUM 123 "No medium found.",
        ECANCELED 125 "Operation Canceled.",
        ENOKEY 126 "Required key not available.",
        EKEYREJECTED 129 "Key was rejected by service.",
        EOWNERDEAD 130 "Owner died.",
        ENOTRECOVERABLE 131 "State not recoverable.",
        ERESTARTSYS 512 "Restart the system call.",
        ENOTSUPP 524 "Operation is not supported.",
        ETOOSMALL 525 "Buffer or request is too small.",
    }

    /// Structure needs cleaning: the file system is corrupted.
    pub const EFSCORRUPTED: super::Error = EUCLEAN;
    /// Bad CRC detected.
    pub const EFSBADCRC: super::Error = EBADMSG;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_negative_and_named() {
        assert_eq!(code::ENOMEM.to_errno(), -12);
        assert_eq!(Error::from_errno(-5), code::EIO);
        assert_eq!(Error::from_errno(0), code::EINVAL);
        assert_eq!(Error::from_errno(-5000), code::EINVAL);
        assert_eq!(format!("{:?}", code::EIO), "EIO");
        assert_eq!(Error::from(AllocError), code::ENOMEM);
    }
}
