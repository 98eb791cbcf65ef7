//! The fixed pool of receive buffers of one I/O thread.
//!
//! One mapping, cut into equal buffers. A buffer is free, or the kernel's (io_uring picks one when
//! bytes arrive), or leased (a [`RecvBuffer`] that somebody reads). An idle connection has none.
//!
//! Free buffers are a stack: the buffer used last is used next, while it is still in the cache, and
//! pages that a quiet server never needs are never touched and cost no memory.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Who may touch a buffer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Nobody; the buffer's number is on the free stack.
    Free,
    /// The kernel may write to it at any time.
    Kernel,
    /// Exactly one [`RecvBuffer`].
    Lease,
}

/// The receive buffers of one thread.
pub struct Pool {
    /// Invariant: a private mapping of `count * buffer_bytes` bytes that lives as long as the pool.
    area: NonNull<u8>,
    buffer_bytes: usize,
    /// By buffer number. Invariant: `Lease` exactly while one `RecvBuffer` with that number exists.
    owners: Box<[Cell<Owner>]>,
    /// Numbers of the free buffers; its capacity is all of them, so it never allocates again.
    free: RefCell<Vec<u16>>,
}

impl Pool {
    /// Maps `count` buffers of `buffer_bytes` each. No page of them is touched.
    ///
    /// # Errors
    /// `ENOMEM` from mmap(2); `InvalidInput` when a size is zero or too large.
    pub fn new(count: u16, buffer_bytes: usize) -> io::Result<Rc<Self>> {
        let bytes = buffer_bytes
            .checked_mul(usize::from(count))
            .filter(|bytes| *bytes > 0 && u32::try_from(buffer_bytes).is_ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let area = map_anonymous(bytes)?;
        Ok(Rc::new(Self {
            area,
            buffer_bytes,
            owners: vec![Cell::new(Owner::Free); usize::from(count)].into(),
            free: RefCell::new((0..count).rev().collect()),
        }))
    }

    /// How many buffers the pool has.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.owners.len() as u16
    }

    /// How many of them nobody has.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.borrow().len()
    }

    /// Takes a free buffer, with no bytes in it yet; `None` when all are in use.
    #[must_use]
    pub fn lease(self: &Rc<Self>) -> Option<RecvBuffer> {
        let id = self.free.borrow_mut().pop()?;
        self.owners[usize::from(id)].set(Owner::Lease);
        Some(RecvBuffer { pool: Rc::clone(self), id, len: 0 })
    }

    /// Gives a free buffer to the kernel: its number, address and size.
    pub(super) fn lend(&self) -> Option<(u16, u64, u32)> {
        let id = self.free.borrow_mut().pop()?;
        self.owners[usize::from(id)].set(Owner::Kernel);
        Some((id, self.address(id).as_ptr().expose_provenance() as u64, self.buffer_bytes as u32))
    }

    /// Takes back a buffer into which the kernel has put `len` bytes. `None` when the kernel never
    /// had it: then nothing is known about the bytes.
    pub(super) fn reclaim(self: &Rc<Self>, id: u16, len: u32) -> Option<RecvBuffer> {
        let owner = self.owners.get(usize::from(id))?;
        if owner.get() != Owner::Kernel {
            return None;
        }
        owner.set(Owner::Lease);
        Some(RecvBuffer { pool: Rc::clone(self), id, len: len.min(self.buffer_bytes as u32) })
    }

    fn give_back(&self, id: u16) {
        self.owners[usize::from(id)].set(Owner::Free);
        self.free.borrow_mut().push(id);
    }

    fn address(&self, id: u16) -> NonNull<u8> {
        debug_assert!(usize::from(id) < self.owners.len());
        // SAFETY: a number that was handed out is below the count, so the address is inside `area`.
        unsafe { self.area.add(usize::from(id) * self.buffer_bytes) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let bytes = self.owners.len() * self.buffer_bytes;
        // SAFETY: the mapping is ours alone. No `RecvBuffer` is left, as each holds an `Rc` of the
        // pool, and the io_uring backend keeps its `Rc` until the kernel has let go of the buffers.
        unsafe { unmap(self.area, bytes) };
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("count", &self.count()).field("free", &self.free()).finish()
    }
}

/// Received bytes. Dropping it gives the buffer back to its pool, on the thread that owns the pool:
/// it cannot be sent to another one.
pub struct RecvBuffer {
    pool: Rc<Pool>,
    id: u16,
    /// Bytes in the buffer, from its start. Invariant: at most `buffer_bytes`.
    len: u32,
}

impl RecvBuffer {
    /// Lets `read` put bytes into the buffer, replacing what it held, and returns their count.
    ///
    /// # Errors
    /// What `read` returns; the buffer is then empty.
    pub fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        self.len = 0;
        let start = self.pool.address(self.id).as_ptr();
        // SAFETY: inside the mapping, which is initialised (zeroes, or bytes received earlier), and
        // this is the buffer's only lease, borrowed exclusively.
        let space = unsafe { std::slice::from_raw_parts_mut(start, self.pool.buffer_bytes) };
        let len = read(space)?.min(self.pool.buffer_bytes);
        self.len = len as u32;
        Ok(len)
    }
}

impl Deref for RecvBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.pool.address(self.id).as_ptr();
        // SAFETY: inside the mapping and initialised. While the lease lives the kernel does not
        // have the buffer (`owners` says so), and `fill` needs the lease exclusively.
        unsafe { std::slice::from_raw_parts(start, self.len as usize) }
    }
}

impl Drop for RecvBuffer {
    fn drop(&mut self) {
        self.pool.give_back(self.id);
    }
}

impl fmt::Debug for RecvBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bytes of a request do not belong into logs; their number does.
        f.debug_struct("RecvBuffer").field("id", &self.id).field("len", &self.len).finish()
    }
}

/// Maps zeroed memory that costs nothing until it is touched.
pub(super) fn map_anonymous(bytes: usize) -> io::Result<NonNull<u8>> {
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let area = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, access, flags)? };
    // Without this the first received byte could cost a huge page. A refusal only costs memory.
    // SAFETY: advice on our own new mapping; it does not change what the bytes are.
    let _ = unsafe { rustix::mm::madvise(area, bytes, Advice::LinuxNoHugepage) };
    NonNull::new(area.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Unmaps what [`map_anonymous`] has mapped.
///
/// # Safety
/// `area` and `bytes` are those of one mapping, and nobody, the kernel included, uses it any more.
pub(super) unsafe fn unmap(area: NonNull<u8>, bytes: usize) {
    // SAFETY: by the caller's promise.
    let unmapped = unsafe { rustix::mm::munmap(area.as_ptr().cast(), bytes) };
    debug_assert!(unmapped.is_ok());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn every_buffer_is_leased_once_and_comes_back() {
        let pool = Pool::new(4, 64).unwrap();
        let mut leases: Vec<_> = std::iter::from_fn(|| pool.lease()).collect();
        assert_eq!(leases.len(), 4);
        for (index, lease) in leases.iter_mut().enumerate() {
            lease
                .fill(|space| {
                    space.fill(index as u8);
                    Ok(space.len())
                })
                .unwrap();
        }
        for (index, lease) in leases.iter().enumerate() {
            assert_eq!(**lease, [index as u8; 64], "buffers overlap");
        }
        drop(leases);
        assert_eq!(pool.free(), 4);
    }

    #[test]
    fn the_buffer_dropped_last_is_used_next() {
        let pool = Pool::new(4, 64).unwrap();
        let (first, second) = (pool.lease().unwrap(), pool.lease().unwrap());
        let id = first.id;
        drop(second);
        drop(first);
        assert_eq!(pool.lease().unwrap().id, id);
    }

    #[test]
    fn a_failed_read_leaves_an_empty_buffer() {
        let pool = Pool::new(1, 8).unwrap();
        let mut lease = pool.lease().unwrap();
        lease.fill(|_| Ok(8)).unwrap();
        lease.fill(|_| Err(io::ErrorKind::ConnectionReset.into())).unwrap_err();
        assert!(lease.is_empty());
    }

    #[test]
    fn the_kernel_returns_only_what_it_was_lent() {
        let pool = Pool::new(2, 8).unwrap();
        let (id, _, bytes) = pool.lend().unwrap();
        assert_eq!(bytes, 8);
        assert!(pool.reclaim(id ^ 1, 1).is_none(), "a free buffer");
        assert!(pool.reclaim(99, 1).is_none(), "no such buffer");
        let lease = pool.reclaim(id, 100).unwrap();
        assert_eq!(lease.len(), 8);
        assert!(pool.reclaim(id, 1).is_none(), "twice");
    }

    #[test]
    fn leases_keep_the_memory_of_a_dropped_pool() {
        let pool = Pool::new(1, 8).unwrap();
        let mut lease = pool.lease().unwrap();
        drop(pool);
        lease
            .fill(|space| {
                space[0] = 7;
                Ok(1)
            })
            .unwrap();
        assert_eq!(*lease, [7]);
    }

    #[test]
    fn sizes_without_sense_are_refused() {
        assert!(Pool::new(0, 64).is_err());
        assert!(Pool::new(4, 0).is_err());
    }
}
