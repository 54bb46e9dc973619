// SPDX-License-Identifier: GPL-2.0-or-later

//! Reads a log from beginning to end with a window of some MiB.

use mars_core::log::{
    BatchView,
    EndReason,
    LogContext,
    LogError,
    LogHeader,
    Scan,
    ScanPos,
    Scanner,
    HEADER_SIZE,
    MAX_BATCH, //
};
use mars_host_digest::HostDigest;
use std::{
    fmt,
    fs::File,
    io::{
        self,
        Read,
        Seek,
        SeekFrom, //
    },
    path::{
        Path,
        PathBuf, //
    },
};

/// Magic number of the original's log format.
const V1_MAGIC: [u8; 8] = 0xa8f7_e908_d917_7957_u64.to_le_bytes();

/// What prevents looking at a log.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A file can't be read.
    File(PathBuf, io::Error),
    /// Nothing can be printed.
    Io(io::Error),
    /// A format that is not known here.
    Format(PathBuf, LogError),
    /// A log of the original.
    V1(PathBuf),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        Self::Io(e.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, e) => write!(f, "{}: {e}", path.display()),
            Self::Io(e) => write!(f, "output: {e}"),
            Self::Format(path, e) => write!(f, "{}: {e}", path.display()),
            Self::V1(path) => write!(
                f,
                "{}: a log of the original MARS (format 1), which is not readable here",
                path.display()
            ),
        }
    }
}

/// The start of a log.
pub(crate) enum Start {
    /// Its header and the header's checksum.
    Header(Box<LogHeader>, u32),
    /// The file is empty, as `marsadm log-rotate` makes it.
    Empty,
    /// The header is damaged.
    Damaged(LogError),
}

/// A file, the part of it that is in memory, and the scanner.
pub(crate) struct Reader {
    path: PathBuf,
    file: File,
    /// Bytes of the file from `start` on.
    window: Vec<u8>,
    start: u64,
    eof: bool,
}

impl Reader {
    /// Opens a log and reads its header.
    pub(crate) fn open(path: &Path) -> Result<(Self, Start), Failure> {
        let fail = |e| Failure::File(path.to_path_buf(), e);
        let file = File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.is_dir() {
            return Err(fail(io::ErrorKind::IsADirectory.into()));
        }
        let mut reader = Self {
            path: path.to_path_buf(),
            file,
            window: Vec::new(),
            start: 0,
            eof: false,
        };
        reader.fill(0, HEADER_SIZE)?;
        let head = &reader.window[..];
        let start = if head.is_empty() {
            Start::Empty
        } else if head.starts_with(&V1_MAGIC) {
            return Err(Failure::V1(reader.path));
        } else {
            match LogHeader::parse::<HostDigest>(head) {
                Ok((header, crc)) => Start::Header(Box::new(header), crc),
                Err(e @ (LogError::Version(_) | LogError::Unsupported(_))) => {
                    return Err(Failure::Format(reader.path, e))
                }
                Err(e) => Start::Damaged(e),
            }
        };
        Ok((reader, start))
    }

    /// Bytes of the file.
    pub(crate) fn file_len(&self) -> Result<u64, Failure> {
        match self.file.metadata() {
            Ok(m) => Ok(m.len()),
            Err(e) => Err(Failure::File(self.path.clone(), e)),
        }
    }

    /// Moves the window to `pos` and reads at least `min` bytes, unless the file ends.
    fn fill(&mut self, pos: u64, min: usize) -> Result<(), Failure> {
        let skip = pos
            .checked_sub(self.start)
            .and_then(|n| usize::try_from(n).ok());
        match skip.filter(|&skip| skip <= self.window.len()) {
            Some(skip) => {
                self.window.drain(..skip);
            }
            None => {
                self.window.clear();
                let seek = self.file.seek(SeekFrom::Start(pos));
                seek.map_err(|e| Failure::File(self.path.clone(), e))?;
                self.eof = false;
            }
        }
        self.start = pos;
        let want = min.max(2 * MAX_BATCH as usize);
        while self.window.len() < min && !self.eof {
            let room = (want - self.window.len()) as u64;
            let got = Read::by_ref(&mut self.file)
                .take(room)
                .read_to_end(&mut self.window)
                .map_err(|e| Failure::File(self.path.clone(), e))?;
            self.eof = got == 0;
        }
        Ok(())
    }

    /// The bytes from `pos` on: at least `min`, or all to the end of the file.
    fn bytes(&mut self, pos: u64, min: usize) -> Result<(&[u8], bool), Failure> {
        let skip = pos
            .checked_sub(self.start)
            .and_then(|n| usize::try_from(n).ok());
        let have = skip.and_then(|skip| self.window.len().checked_sub(skip));
        let enough = have.is_some_and(|have| have >= min || self.eof);
        if !enough {
            self.fill(pos, min)?;
        }
        let skip = usize::try_from(pos - self.start).unwrap_or(usize::MAX);
        // A short answer means that the file ends.
        let bytes = self.window.get(skip..).unwrap_or(&[]);
        Ok((bytes, bytes.len() < min))
    }

    /// Calls `each` for every batch from `from` on, until the log ends or `each` has enough. Returns
    /// where the scanner stands then, and why the log ends there.
    pub(crate) fn scan(
        &mut self,
        ctx: LogContext,
        from: ScanPos,
        verify: bool,
        mut each: impl FnMut(&BatchView<'_>) -> Result<bool, Failure>,
    ) -> Result<(ScanPos, Option<EndReason>), Failure> {
        let mut scanner = Scanner::resume(ctx, from);
        let mut min = 1;
        loop {
            let (bytes, eof) = self.bytes(scanner.pos(), min)?;
            let scan = if eof {
                scanner.next_at_eof::<HostDigest>(bytes, verify)
            } else {
                scanner.next::<HostDigest>(bytes, verify)
            };
            match scan {
                Scan::Batch(batch) => {
                    min = 1;
                    if !each(&batch)? {
                        return Ok((scanner.at(), None));
                    }
                }
                Scan::NeedMore(more) => min = more,
                Scan::End(reason) => return Ok((scanner.at(), Some(reason))),
            }
        }
    }

    /// Looks for a whole batch of this log behind `pos`. Returns its position, or else whether there is
    /// anything but zeros.
    pub(crate) fn search(&mut self, ctx: LogContext, pos: u64) -> Result<Rest, Failure> {
        let mut pos = pos;
        let mut zeros = true;
        loop {
            let align = ctx.align as usize;
            let (bytes, _) = self.bytes(pos, MAX_BATCH as usize)?;
            if bytes.is_empty() {
                return Ok(if zeros { Rest::Zeros } else { Rest::Garbage });
            }
            let block = &bytes[..align.min(bytes.len())];
            if block.iter().any(|&b| b != 0) {
                zeros = false;
                let mut scanner = Scanner::new(ctx, pos, None, None);
                if let Scan::Batch(_) = scanner.next::<HostDigest>(bytes, true) {
                    return Ok(Rest::Batch(pos));
                }
            }
            pos += block.len() as u64;
        }
    }
}

/// What is behind the end of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    /// Nothing, or zeros.
    Zeros,
    /// Something that is no whole batch of this log.
    Garbage,
    /// The next whole batch is here.
    Batch(u64),
}
