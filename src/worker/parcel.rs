//! A connection on its way to a sibling: what the next worker must know of it, as the bytes of a letter. The
//! socket itself goes with it.
//!
//! Letters pass between processes of one master and therefore of one program. They are read as carefully as
//! bytes of a client all the same: a bug shall cost a connection, not a worker.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;

use crate::app::Listener;

/// Letters of other kinds begin with other bytes (`Mailboxes::poke`).
const PARCEL: u8 = 1;

/// A connection that changes its worker.
#[derive(Debug)]
pub(super) struct Parcel<'a> {
    /// Where it came in. Not a number: after a reload the same number may be another address.
    pub(super) listener: Listener,
    /// Client and destination, if a PROXY header has said who they are.
    pub(super) proxied: Option<(SocketAddr, SocketAddr)>,
    /// Nobody has read anything of it.
    pub(super) fresh: bool,
    /// Since when its request has waited for a runner, in milliseconds of the clock that all workers share.
    pub(super) queued_ms: u64,
    /// What was received and is not answered.
    pub(super) bytes: &'a [u8],
}

/// The first part of a letter; the bytes received follow it.
pub(super) fn address(
    listener: &Listener,
    proxied: Option<(SocketAddr, SocketAddr)>,
    fresh: bool,
    queued_ms: u64,
    into: &mut Vec<u8>,
) {
    let text = |address: Option<SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let unix = listener.unix.as_ref().map_or(OsStr::new(""), |path| path.as_os_str());
    into.clear();
    into.extend_from_slice(&[PARCEL, u8::from(fresh), u8::from(listener.unix.is_some())]);
    into.extend_from_slice(&queued_ms.to_be_bytes());
    for field in [
        listener.name.as_bytes(),
        listener.port.as_bytes(),
        unix.as_bytes(),
        text(proxied.map(|(client, _)| client)).as_bytes(),
        text(proxied.map(|(_, destination)| destination)).as_bytes(),
    ] {
        // The longest is a unix socket's path, of 108 bytes.
        let length = u16::try_from(field.len()).unwrap_or(u16::MAX);
        into.extend_from_slice(&length.to_be_bytes());
        into.extend_from_slice(&field[..usize::from(length)]);
    }
}

impl<'a> Parcel<'a> {
    /// Reads a letter; `None` for one of another kind.
    pub(super) fn read(letter: &'a [u8]) -> Option<Self> {
        let (&[PARCEL, fresh, unix], rest) = letter.split_first_chunk()? else { return None };
        let (queued_ms, mut rest) = rest.split_first_chunk()?;
        let mut fields = [&[][..]; 5];
        for field in &mut fields {
            let (length, behind) = rest.split_first_chunk()?;
            (*field, rest) = behind.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        }
        let [name, port, path, client, destination] = fields;
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let proxied = match (client, destination) {
            ([], []) => None,
            _ => Some((text(client)?.parse().ok()?, text(destination)?.parse().ok()?)),
        };
        let listener = Listener {
            name: text(name)?.to_owned(),
            port: text(port)?.to_owned(),
            unix: (unix != 0).then(|| OsStr::from_bytes(path).into()),
        };
        let queued_ms = u64::from_be_bytes(*queued_ms);
        Some(Self { listener, proxied, fresh: fresh != 0, queued_ms, bytes: rest })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_parcel_arrives_as_it_was_sent_and_a_cut_one_not_at_all() {
        let proxied = Some(("192.0.2.1:5".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()));
        let path = OsStr::from_bytes(b"/run/\xff.sock");
        for listener in [Listener::inet(([127, 0, 0, 1], 80).into()), Listener::unix(path.into())] {
            for (proxied, fresh, bytes) in [(None, true, &b""[..]), (proxied, false, b"GET / HTTP/1.1\r\n")] {
                let mut letter = Vec::new();
                address(&listener, proxied, fresh, 1 << 40, &mut letter);
                for cut in 0..letter.len() {
                    assert!(Parcel::read(&letter[..cut]).is_none(), "{cut}");
                }
                letter.extend_from_slice(bytes);
                let read = Parcel::read(&letter).unwrap();
                assert_eq!((read.proxied, read.fresh, read.bytes), (proxied, fresh, bytes));
                assert_eq!(read.queued_ms, 1 << 40);
                assert_eq!(read.listener, listener);
            }
        }
        assert!(Parcel::read(&[0]).is_none() && Parcel::read(&[]).is_none());
    }
}
