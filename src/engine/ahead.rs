// SPDX-License-Identifier: GPL-2.0-or-later

//! Reads a log ahead of recovery, so that the disk of `/mars` does not wait while batches are checked.
//!
//! A thread of its own reads piece after piece (`mars_core::ahead` says how long) and leaves them in a short queue. Owner is the
//! session in `replay.rs`, which takes them out in order. It is only a shortcut: after an error, or for a batch that is longer
//! than two pieces, there is nothing here, and the session reads for itself as it does without this.
//!
//! Only for a file that nobody writes to, and from a place on that is durable.
//!
//! Lock: `Shared::queue` is a leaf; no I/O is done under it.

use kernel::{
    prelude::*,
    sync::{
        atomic::Atomic,
        new_mutex,
        Arc,
        Mutex, //
    }, //
};

use mars_core::ahead::{
    self,
    Found,
    Span, //
};

use crate::{
    engine::{
        inject,
        replay::read, //
    },
    sys::{
        buf::Buf,
        event::Event,
        file::File,
        thread::{
            Thread,
            ThreadCtx, //
        }, //
    }, //
};

/// A part of the log.
#[derive(Clone)]
struct Piece {
    pos: u64,
    len: usize,
    buf: Arc<Buf>,
}

impl Piece {
    fn span(&self) -> Span {
        Span {
            pos: self.pos,
            len: self.len,
        }
    }
}

struct Queue {
    pieces: KVec<Piece>,
    /// Nothing comes after them: the limit or the end of the file.
    last: bool,
    /// The thread has given up before that.
    failed: bool,
}

#[pin_data]
struct Shared {
    #[pin]
    queue: Mutex<Queue>,
    /// A piece came, or none will come any more.
    #[pin]
    came: Event,
    /// There is room for a piece.
    #[pin]
    taken: Event,
}

/// Bytes of the log from the position that was asked for.
pub(crate) struct Window {
    /// They are in here,
    pub(crate) buf: Arc<Buf>,
    /// from this byte
    pub(crate) from: usize,
    /// up to this one.
    pub(crate) to: usize,
    /// The log has no more, as far as it counts.
    pub(crate) last: bool,
}

/// A log that is read ahead.
pub(crate) struct Ahead {
    _thread: Thread,
    shared: Arc<Shared>,
    limit: u64,
    here: Piece,
    next: Option<Piece>,
    counter: Arc<Atomic<usize>>,
}

impl Ahead {
    /// Begins to read `file` at `pos`; what is at `limit` and behind does not count. `counter` counts the bytes that are in
    /// memory.
    pub(crate) fn start(
        name: &CStr,
        file: Arc<File>,
        pos: u64,
        limit: u64,
        counter: Arc<Atomic<usize>>,
    ) -> Result<Self> {
        let pieces = KVec::with_capacity(ahead::DEPTH, GFP_KERNEL)?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                queue <- new_mutex!(Queue {
                    pieces,
                    last: false,
                    failed: false,
                }),
                came <- Event::new(),
                taken <- Event::new(),
            }),
            GFP_KERNEL,
        )?;
        let empty = Arc::new(Buf::new(0)?, GFP_KERNEL)?;
        let (theirs, count) = (shared.clone(), counter.clone());
        Ok(Self {
            _thread: Thread::spawn(name, move |ctx| {
                run(ctx, &theirs, &file, pos, limit, &count)
            })?,
            shared,
            limit,
            here: Piece {
                pos,
                len: 0,
                buf: empty,
            },
            next: None,
            counter,
        })
    }

    /// Whether it reads up to there.
    pub(crate) fn reads_to(&self, limit: u64) -> bool {
        self.limit == limit
    }

    /// The log from `pos` on: at least `min` bytes, unless that is all. `None`: they have to be read in another way.
    ///
    /// # Errors
    ///
    /// `EINTR` if `stop` says so meanwhile; no memory.
    pub(crate) fn get(
        &mut self,
        pos: u64,
        min: usize,
        stop: &impl Fn() -> bool,
    ) -> Result<Option<Window>> {
        loop {
            let (last, failed) = self.refill();
            let next = self.next.as_ref().map(Piece::span);
            match ahead::find(pos, min, self.here.span(), next, last) {
                Found::Here(part) => {
                    return Ok(Some(Window {
                        last: last && next.is_none(),
                        buf: self.here.buf.clone(),
                        from: part.start,
                        to: part.end,
                    }))
                }
                Found::Both(one, two) => {
                    let Some(next) = &self.next else {
                        return Ok(None);
                    };
                    let all = two.end == next.len;
                    let len = one.len().saturating_add(two.len());
                    let mut buf = Buf::counted(len, &self.counter)?;
                    let (head, tail) = buf.split_at_mut_checked(one.len()).ok_or(EINVAL)?;
                    head.copy_from_slice(self.here.buf.get(one).ok_or(EINVAL)?);
                    tail.copy_from_slice(next.buf.get(two).ok_or(EINVAL)?);
                    return Ok(Some(Window {
                        from: 0,
                        to: buf.len(),
                        buf: Arc::new(buf, GFP_KERNEL)?,
                        last: last && all,
                    }));
                }
                Found::Next => match self.next.take() {
                    Some(next) => self.here = next,
                    None => return Ok(None),
                },
                Found::Wait if !failed => {
                    if stop() {
                        return Err(EINTR);
                    }
                    self.shared.came.wait_timeout(1000);
                }
                Found::Wait | Found::Elsewhere => return Ok(None),
            }
        }
    }

    /// Takes the next piece out of the queue, if there is room for it; whether none comes behind it, and why.
    fn refill(&mut self) -> (bool, bool) {
        let mut queue = self.shared.queue.lock();
        if self.next.is_none() && !queue.pieces.is_empty() {
            self.next = queue.pieces.remove(0).ok();
            self.shared.taken.signal();
        }
        let empty = queue.pieces.is_empty();
        (queue.last && empty, queue.failed && empty)
    }
}

/// The thread.
fn run(
    ctx: &ThreadCtx,
    shared: &Shared,
    file: &File,
    pos: u64,
    limit: u64,
    counter: &Arc<Atomic<usize>>,
) {
    let done = read_all(ctx, shared, file, pos, limit, counter);
    {
        let mut queue = shared.queue.lock();
        queue.last = done.is_ok();
        queue.failed = done.is_err();
    }
    shared.came.signal();
}

fn read_all(
    ctx: &ThreadCtx,
    shared: &Shared,
    file: &File,
    mut pos: u64,
    limit: u64,
    counter: &Arc<Atomic<usize>>,
) -> Result {
    let mut most = ahead::PIECE;
    loop {
        while shared.queue.lock().pieces.len() >= ahead::DEPTH {
            shared.taken.wait_timeout(1000);
            if ctx.should_stop() {
                return Err(EINTR);
            }
        }
        if ctx.should_stop() {
            return Err(EINTR);
        }
        let len = ahead::next_piece(pos, limit, most);
        if len == 0 {
            return Ok(());
        }
        let mut buf = match Buf::counted(len, counter) {
            Err(e) if e == ENOMEM => {
                most = ahead::shorter(most).ok_or(ENOMEM)?;
                continue;
            }
            r => r?,
        };
        let n = read(file, &mut buf, pos)?;
        let bytes = buf.get_mut(..n).ok_or(EIO)?;
        let n = inject::data!(ReplayRead, pos, bytes)?.unwrap_or(n);
        let piece = Piece {
            pos,
            len: n,
            buf: Arc::new(buf, GFP_KERNEL)?,
        };
        if n > 0 {
            shared.queue.lock().pieces.push(piece, GFP_KERNEL)?;
            shared.came.signal();
        }
        if n < len {
            return Ok(());
        }
        pos = pos.saturating_add(u64::try_from(n)?);
    }
}
