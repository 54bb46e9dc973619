// SPDX-License-Identifier: GPL-2.0-or-later

//! A directory below `/proc/sys`: texts to read, words to write, numbers to tune.
//!
//! ```ignore
//! static LIMIT: Tunable<u32> = Tunable::new(c"limit", 100, 1, 1000);
//!
//! let dir = Sysctl::builder()
//!     .text(c"version", |out| out.print(fmt!("{}\n", 2)))?
//!     .trigger(c"trigger", |input| engine.trigger(input))?
//!     .tunable_u32(&LIMIT)?
//!     .register(c"mars")?;
//! ```
//!
//! Callbacks run in the task that reads or writes; they may sleep. While one runs, dropping the
//! [`Sysctl`] waits for it: a callback must not wait for who drops it.
//!
//! C header: [`include/linux/sysctl.h`](srctree/include/linux/sysctl.h)

use super::thread::NoIo;
use core::{fmt, ptr::NonNull, slice};
use kernel::{
    bindings,
    error::from_result,
    prelude::*,
    sync::atomic::{Atomic, AtomicType, Relaxed},
};

/// The longest text.
const TEXT_MAX: usize = 1 << 20;

/// A number that administrators may change while it is used.
pub(crate) struct Tunable<T: AtomicType> {
    name: &'static CStr,
    value: Atomic<T>,
    default: T,
    min: T,
    max: T,
}

impl<T: AtomicType + PartialOrd> Tunable<T> {
    /// A number with its name, its value at the beginning, and its limits.
    pub(crate) const fn new(name: &'static CStr, default: T, min: T, max: T) -> Self {
        Self {
            name,
            value: Atomic::new(default),
            default,
            min,
            max,
        }
    }

    /// Name, value at the beginning, and limits.
    pub(crate) fn describe(&self) -> (&'static CStr, T, T, T) {
        (self.name, self.default, self.min, self.max)
    }

    /// Whether the value at the beginning is within the limits.
    fn is_sound(&self) -> bool {
        (self.min..=self.max).contains(&self.default)
    }
}

macro_rules! tunable {
    ($t:ty) => {
        impl Tunable<$t> {
            /// The value now.
            pub(crate) fn get(&self) -> $t {
                self.value.load(Relaxed)
            }

            /// Changes the value; `EINVAL` beyond the limits.
            pub(crate) fn set(&self, value: $t) -> Result {
                if !(self.min..=self.max).contains(&value) {
                    return Err(EINVAL);
                }
                self.value.store(value, Relaxed);
                Ok(())
            }
        }
    };
}

tunable!(u32);
tunable!(u64);

/// The text that a callback writes.
pub(crate) struct TextWriter {
    text: KVVec<u8>,
    result: Result,
}

impl TextWriter {
    fn new() -> Self {
        Self {
            text: KVVec::new(),
            result: Ok(()),
        }
    }

    /// Appends formatted text.
    pub(crate) fn print(&mut self, args: fmt::Arguments<'_>) -> Result {
        match fmt::write(self, args) {
            Ok(()) => Ok(()),
            Err(_) => self.result.and(Err(EINVAL)),
        }
    }

    /// Appends bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result {
        let len = self.text.len().saturating_add(bytes.len());
        let result = if len > TEXT_MAX {
            Err(EFBIG)
        } else {
            self.text
                .extend_from_slice(bytes, GFP_KERNEL)
                .map_err(Error::from)
        };
        if result.is_err() {
            self.result = result;
        }
        result
    }
}

impl fmt::Write for TextWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// Writes a text.
type ReadFn = KBox<dyn Fn(&mut TextWriter) -> Result + Send + Sync>;
/// Takes what was written, without white space at its ends.
type WriteFn = KBox<dyn Fn(&[u8]) -> Result + Send + Sync>;

/// What is behind a name.
enum Entry {
    Text(&'static CStr, ReadFn),
    Trigger(&'static CStr, WriteFn),
    U32(&'static Tunable<u32>),
    U64(&'static Tunable<u64>),
}

impl Entry {
    fn name(&self) -> &'static CStr {
        match self {
            Self::Text(name, _) | Self::Trigger(name, _) => name,
            Self::U32(tunable) => tunable.name,
            Self::U64(tunable) => tunable.name,
        }
    }

    fn mode(&self) -> u16 {
        match self {
            Self::Text(..) => 0o444,
            Self::Trigger(..) => 0o200,
            Self::U32(_) | Self::U64(_) => 0o644,
        }
    }

    /// The whole text now.
    fn show(&self) -> Result<KVVec<u8>> {
        let mut out = TextWriter::new();
        match self {
            Self::Text(_, read) => read(&mut out)?,
            Self::Trigger(..) => return Err(EPERM),
            Self::U32(tunable) => out.print(fmt!("{}\n", tunable.get()))?,
            Self::U64(tunable) => out.print(fmt!("{}\n", tunable.get()))?,
        }
        out.result?;
        Ok(out.text)
    }

    /// Takes what was written.
    fn store(&self, input: &[u8]) -> Result {
        let input = input.trim_ascii();
        match self {
            Self::Text(..) => Err(EPERM),
            Self::Trigger(_, write) => write(input),
            Self::U32(tunable) => tunable.set(parse(input)?.try_into().map_err(|_| EINVAL)?),
            Self::U64(tunable) => tunable.set(parse(input)?),
        }
    }
}

/// A decimal number, or a hexadecimal one after `0x`.
fn parse(input: &[u8]) -> Result<u64> {
    let text = core::str::from_utf8(input).map_err(|_| EINVAL)?;
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    if digits.starts_with('+') {
        return Err(EINVAL);
    }
    u64::from_str_radix(digits, radix).map_err(|_| EINVAL)
}

/// Called for each read and each write of one of our files.
///
/// # Safety
///
/// `table` is a line of the table of a [`Sysctl`]; `buffer` is valid for reading and writing
/// `*len` bytes.
unsafe extern "C" fn handle(
    table: *const bindings::ctl_table,
    write: c_int,
    buffer: *mut c_void,
    len: *mut usize,
    pos: *mut bindings::loff_t,
) -> c_int {
    // Locks are taken that threads of the I/O path take, too.
    let _noio = NoIo::enter();
    from_result(|| {
        // SAFETY: `extra1` points at the line's entry; `Sysctl` keeps both until no call is under
        // way. `len` and `pos` are valid for the call.
        let (entry, len, pos) =
            unsafe { (&*(*table).extra1.cast::<Entry>(), &mut *len, &mut *pos) };
        if write != 0 {
            // SAFETY: By the requirement of this function.
            let input = unsafe { slice::from_raw_parts(buffer.cast::<u8>(), *len) };
            if *pos != 0 {
                return Err(EINVAL);
            }
            entry.store(input)?;
        } else {
            let text = entry.show()?;
            let rest = text.get(usize::try_from(*pos)?..).unwrap_or_default();
            let rest = rest.get(..*len).unwrap_or(rest);
            // SAFETY: By the requirement of this function, and `rest` is not longer than `*len`.
            unsafe {
                buffer
                    .cast::<u8>()
                    .copy_from_nonoverlapping(rest.as_ptr(), rest.len())
            };
            *len = rest.len();
        }
        *pos = pos.checked_add(i64::try_from(*len)?).ok_or(EOVERFLOW)?;
        Ok(0)
    })
}

/// Collects what a directory has.
pub(crate) struct SysctlBuilder {
    entries: KVec<Entry>,
}

impl SysctlBuilder {
    fn push(mut self, entry: Entry) -> Result<Self> {
        self.entries.push(entry, GFP_KERNEL)?;
        Ok(self)
    }

    /// A text that everybody may read; `read` writes all of it for each call.
    pub(crate) fn text(
        self,
        name: &'static CStr,
        read: impl Fn(&mut TextWriter) -> Result + Send + Sync + 'static,
    ) -> Result<Self> {
        let read: ReadFn = KBox::new(read, GFP_KERNEL)?;
        self.push(Entry::Text(name, read))
    }

    /// A file that root may write.
    pub(crate) fn trigger(
        self,
        name: &'static CStr,
        write: impl Fn(&[u8]) -> Result + Send + Sync + 'static,
    ) -> Result<Self> {
        let write: WriteFn = KBox::new(write, GFP_KERNEL)?;
        self.push(Entry::Trigger(name, write))
    }

    /// A number that root may change. `EINVAL` if its first value is beyond its limits.
    pub(crate) fn tunable_u32(self, tunable: &'static Tunable<u32>) -> Result<Self> {
        if !tunable.is_sound() {
            return Err(EINVAL);
        }
        self.push(Entry::U32(tunable))
    }

    /// A number that root may change. `EINVAL` if its first value is beyond its limits.
    pub(crate) fn tunable_u64(self, tunable: &'static Tunable<u64>) -> Result<Self> {
        if !tunable.is_sound() {
            return Err(EINVAL);
        }
        self.push(Entry::U64(tunable))
    }

    /// Makes the directory `/proc/sys/<path>`. Sleeps.
    pub(crate) fn register(self, path: &'static CStr) -> Result<Sysctl> {
        let entries = self.entries;
        let mut table = KVec::with_capacity(entries.len(), GFP_KERNEL)?;
        for entry in &entries {
            table.push(
                bindings::ctl_table {
                    procname: entry.name().as_char_ptr(),
                    mode: entry.mode(),
                    proc_handler: Some(handle),
                    extra1: (&raw const *entry).cast_mut().cast(),
                    ..pin_init::zeroed()
                },
                GFP_KERNEL,
            )?;
        }
        // SAFETY: `table` and what it points at remain until it is unregistered by `drop`: the
        // memory of both vectors does not move with them, and they are not changed any more.
        let header = unsafe {
            bindings::register_sysctl_sz(path.as_char_ptr(), table.as_ptr(), table.len())
        };
        // INVARIANT: `header` is the registration of `table`.
        Ok(Sysctl {
            header: NonNull::new(header).ok_or(ENOMEM)?,
            _table: table,
            _entries: entries,
        })
    }
}

/// A directory below `/proc/sys`; goes away when dropped.
///
/// # Invariants
///
/// `header` is the registration of `_table`, whose lines point at the elements of `_entries`.
pub(crate) struct Sysctl {
    header: NonNull<bindings::ctl_table_header>,
    _table: KVec<bindings::ctl_table>,
    _entries: KVec<Entry>,
}

// SAFETY: A registration is bound to no thread, and the callbacks are `Send`.
unsafe impl Send for Sysctl {}
// SAFETY: `&Sysctl` allows nothing.
unsafe impl Sync for Sysctl {}

impl Sysctl {
    /// An empty directory to be filled.
    pub(crate) fn builder() -> SysctlBuilder {
        SysctlBuilder {
            entries: KVec::new(),
        }
    }
}

impl Drop for Sysctl {
    /// Waits for calls that are under way. Sleeps.
    fn drop(&mut self) {
        // SAFETY: By the type invariant. Afterwards nobody uses the table any more.
        unsafe { bindings::unregister_sysctl_table(self.header.as_ptr()) };
    }
}
