//! Mailboxes between the workers of one master: bytes, with or without a socket (`SCM_RIGHTS`).
//!
//! There is one for each slot, made before the fork, and every process has both ends of all of them. So
//! anybody can write to anybody, a letter outlives the worker that it was for, and whoever serves the slot
//! next, or in its place, can take it: a mailbox is like the queue of a listener.
//!
//! A letter is one message of a `SOCK_SEQPACKET` pair, whole or not at all. The kernel bounds what waits in one
//! by the size of a socket's buffer (`net.core.wmem_default`, some 200 KiB).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// All mailboxes, by slot.
#[derive(Debug, Default)]
pub struct Mailboxes {
    boxes: Vec<Mailbox>,
}

#[derive(Debug)]
struct Mailbox {
    slit: OwnedFd,
    drawer: OwnedFd,
}

impl Mailboxes {
    /// Makes mailboxes up to that of `slot`. Only processes forked from now on have the new ones.
    ///
    /// # Errors
    /// No descriptors, no memory.
    pub fn grow(&mut self, slot: usize) -> io::Result<()> {
        while self.boxes.len() <= slot {
            let (slit, drawer) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            self.boxes.push(Mailbox { slit, drawer });
        }
        Ok(())
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.boxes.len()
    }

    /// The descriptors, for [`super::atfork::note`].
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.boxes.iter().flat_map(|mailbox| [mailbox.slit.as_raw_fd(), mailbox.drawer.as_raw_fd()])
    }

    /// What becomes readable when a letter for `slot` arrives.
    #[must_use]
    pub fn drawer(&self, slot: usize) -> Option<RawFd> {
        Some(self.boxes.get(slot)?.drawer.as_raw_fd())
    }

    /// Sends a letter, with a copy of a socket that the receiver gets. Never waits.
    ///
    /// # Errors
    /// `NotFound`: this process has no such mailbox. `WouldBlock`: it is full. `EMSGSIZE`: the letter is larger
    /// than any can be. `ETOOMANYREFS`: as many sockets are on their way as the user may have open.
    pub fn send(&self, slot: usize, letter: &[u8], socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mailbox = self.boxes.get(slot).ok_or(io::ErrorKind::NotFound)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets = socket.as_slice();
        if !sockets.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(sockets));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&mailbox.slit, &[IoSlice::new(letter)], &mut control, flags)?;
        Ok(())
    }

    /// Sends a letter of one zero byte: whoever serves the slot is to look at the records of its siblings.
    pub fn poke(&self, slot: usize) {
        // A full mailbox wakes its worker as well.
        let _ = self.send(slot, &[0], None);
    }

    /// Takes the next letter of `slot` into `space`, which has room for the largest one. Returns its length and
    /// its socket. Never waits; `None` when there is no letter, or no descriptor for its socket: then it stays.
    #[must_use]
    pub fn receive(&self, slot: usize, space: &mut [u8]) -> Option<(usize, Option<OwnedFd>)> {
        let mailbox = self.boxes.get(slot)?;
        let mut control = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut control);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        // Without a free descriptor the kernel gives the letter and drops the socket (MSG_CTRUNC): a client would be
        // lost. Another thread may still take this one in between; that cannot be helped.
        drop(mailbox.drawer.try_clone().ok()?);
        let received = loop {
            match recvmsg(mailbox.drawer.as_fd(), &mut [IoSliceMut::new(space)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
                Ok(received) => break received.bytes,
            }
        };
        let mut socket = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                socket = sockets.last();
            }
        }
        Some((received, socket))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::process::{Resource, Rlimit, WaitOptions, getrlimit, setrlimit, waitpid};

    use super::*;
    use crate::sys::process::{Fork, exit_now, fork};

    #[test]
    fn letters_come_whole_in_order_and_with_their_sockets() {
        let mut all = Mailboxes::default();
        all.grow(1).unwrap();
        assert_eq!((all.count(), all.fds().count()), (2, 4));
        let (mut near, far) = UnixStream::pair().unwrap();
        all.send(1, b"plain", None).unwrap();
        all.send(1, &[7; 60_000], Some(far.as_fd())).unwrap();
        drop(far);
        let mut space = vec![0; 65_536];
        assert!(all.receive(0, &mut space).is_none(), "it is not for this slot");
        let (length, socket) = all.receive(1, &mut space).unwrap();
        assert_eq!((&space[..length], socket.is_none()), (&b"plain"[..], true));
        let (length, socket) = all.receive(1, &mut space).unwrap();
        assert_eq!(length, 60_000);
        assert!(space[..length].iter().all(|byte| *byte == 7));
        let mut far = UnixStream::from(socket.unwrap());
        far.write_all(b"x").unwrap();
        near.read_exact(&mut [0]).unwrap();
        assert!(all.receive(1, &mut space).is_none());
        assert!(all.receive(2, &mut space).is_none());
        assert_eq!(all.send(2, b"x", None).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// The kernel hands out such a letter without its socket, and the client was gone. In a child: the limit is the
    /// whole process's.
    #[test]
    fn a_letter_waits_for_a_descriptor_for_its_socket() {
        let mut all = Mailboxes::default();
        all.grow(0).unwrap();
        let (_near, far) = UnixStream::pair().unwrap();
        all.send(0, b"x", Some(far.as_fd())).unwrap();
        let child = fork().unwrap();
        if child == Fork::Child {
            let mut space = [0; 64];
            let limit = getrlimit(Resource::Nofile);
            // All descriptors below the limit are taken from here on.
            let next = far.try_clone().map_or(0, |free| free.as_raw_fd() as u64);
            let none = setrlimit(Resource::Nofile, Rlimit { current: Some(next), ..limit }).is_ok()
                && all.receive(0, &mut space).is_none();
            let waited = setrlimit(Resource::Nofile, limit).is_ok()
                && all.receive(0, &mut space).is_some_and(|(length, socket)| length == 1 && socket.is_some());
            exit_now(i32::from(!(none && waited)));
        }
        let Fork::Parent(pid) = child else { unreachable!("the child has left") };
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn a_full_mailbox_says_so_and_keeps_what_it_has() {
        let mut all = Mailboxes::default();
        all.grow(0).unwrap();
        let (_near, far) = UnixStream::pair().unwrap();
        let mut sent = 0;
        let error = loop {
            match all.send(0, &[1; 10_000], Some(far.as_fd())) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent < 10_000, "there is no bound");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut space = vec![0; 65_536];
        let taken = std::iter::from_fn(|| all.receive(0, &mut space)).filter(|(_, socket)| socket.is_some());
        assert_eq!(taken.count(), sent);
    }
}
