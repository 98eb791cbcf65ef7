//! Messages to the service manager that started us (sd_notify(3)): systemd with `Type=notify`.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::launch::Launch;
use crate::sys::clock::monotonic_ns;
use crate::sys::process::{self, Pid};

/// Where the messages go, and how often the manager wants to hear from us.
#[derive(Debug)]
pub(super) struct Service {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog_ms: Option<u64>,
    petted_ms: u64,
    said: Said,
}

/// What the manager was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Ready,
    Reloading,
    Stopping,
}

impl Service {
    /// As `NOTIFY_SOCKET` and `WATCHDOG_USEC` say; silent without them.
    pub(super) fn new(launch: &Launch) -> Self {
        let socket = launch.variable("NOTIFY_SOCKET").and_then(address).and_then(|address| {
            let socket = UnixDatagram::unbound().ok()?;
            // A manager that does not read must not hold the server up.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        let number = |name| launch.variable(name)?.to_str()?.parse::<u64>().ok();
        let own = u64::from(process::id().as_raw_nonzero().get().unsigned_abs());
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == own);
        // Twice in the time given, as sd_watchdog_enabled(3) advises.
        let watchdog_ms = number("WATCHDOG_USEC").filter(|_| ours && socket.is_some()).map(|us| us / 2_000);
        Self { socket, watchdog_ms: watchdog_ms.filter(|ms| *ms > 0), petted_ms: 0, said: Said::Nothing }
    }

    /// All workers serve.
    pub(super) fn ready(&mut self, workers: usize) {
        if matches!(self.said, Said::Nothing | Said::Reloading) {
            self.said = Said::Ready;
            self.send(&format!("READY=1\nSTATUS=Workers that serve: {workers}"));
        }
    }

    /// A reload begins; [`Service::ready`] ends it.
    pub(super) fn reloading(&mut self) {
        if self.said == Said::Ready {
            self.said = Said::Reloading;
            let now_us = monotonic_ns() / 1_000;
            self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS=Reloading"));
        }
    }

    /// The server stops. `next` is the master that goes on in our place (USR2).
    pub(super) fn stopping(&mut self, next: Option<Pid>) {
        if self.said == Said::Stopping {
            return;
        }
        self.said = Said::Stopping;
        match next {
            // The service goes on: only its main process changes.
            Some(pid) => self.send(&format!("MAINPID={pid}")),
            None => self.send("STOPPING=1\nSTATUS=Stopping"),
        }
    }

    /// This process is the service's main one from now on.
    pub(super) fn promoted(&self) {
        self.send(&format!("MAINPID={}", process::id()));
    }

    /// Says that the master lives, when it is time.
    pub(super) fn pet(&mut self, now_ms: u64) {
        if let Some(every_ms) = self.watchdog_ms
            && now_ms >= self.petted_ms + every_ms
        {
            self.petted_ms = now_ms;
            self.send("WATCHDOG=1");
        }
    }

    /// When [`Service::pet`] is to be called next.
    pub(super) fn next_ms(&self) -> Option<u64> {
        Some(self.petted_ms + self.watchdog_ms?)
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::debug!("cannot tell the service manager: {error}");
        }
    }
}

fn address(text: &OsStr) -> Option<SocketAddr> {
    match text.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(text).ok(),
        _ => None,
    }
}
