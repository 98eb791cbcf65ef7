//! The PROXY protocol, versions 1 and 2: a load balancer says whose connection it passes on.
//!
//! Who may send it (`proxy_allow_ips`) is the caller's question.
//!
//! # Source
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>; gunicorn's setting
//! `proxy_protocol`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use memchr::memchr;

use super::refusal::Refusal;
use super::scan;
use crate::limits::PROXY_TAIL_BYTES_MAX;

const V1_SIGNATURE: &[u8] = b"PROXY ";
/// A line of version 1 with its CRLF has at most 107 bytes.
const V1_BYTES_MAX: usize = 107;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED_BYTES: usize = 16;

/// Which versions are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// None.
    #[default]
    Off,
    /// The line of text.
    V1,
    /// The binary header.
    V2,
    /// Both.
    Auto,
}

/// What stands in front of the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyInfo {
    /// No header. As with gunicorn, it is not demanded.
    Absent,
    /// The proxy speaks for itself, or does not know for whom: the real peer counts.
    Local,
    /// The proxy speaks for a client.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// Where the client connected to.
        destination: SocketAddr,
    },
}

/// Parses a PROXY header at the beginning of a connection.
///
/// `Ok(Some((n, info)))`: the header is the first `n` bytes. `Ok(None)`: more bytes are needed.
///
/// # Errors
/// 400 if the signature is there and the rest is wrong.
pub fn parse_proxy(input: &[u8], mode: ProxyMode) -> Result<Option<(usize, ProxyInfo)>, Refusal> {
    let (v1, v2) = match mode {
        ProxyMode::Off => (false, false),
        ProxyMode::V1 => (true, false),
        ProxyMode::V2 => (false, true),
        ProxyMode::Auto => (true, true),
    };
    if v1 && input.starts_with(V1_SIGNATURE) {
        parse_v1(input)
    } else if v2 && input.starts_with(V2_SIGNATURE) {
        parse_v2(input)
    } else if (v1 && V1_SIGNATURE.starts_with(input)) || (v2 && V2_SIGNATURE.starts_with(input)) {
        Ok(None)
    } else {
        Ok(Some((0, ProxyInfo::Absent)))
    }
}

fn parse_v1(input: &[u8]) -> Result<Option<(usize, ProxyInfo)>, Refusal> {
    let line = match memchr(b'\n', &input[..input.len().min(V1_BYTES_MAX)]) {
        Some(lf) => &input[..=lf],
        None if input.len() < V1_BYTES_MAX => return Ok(None),
        None => return Err(Refusal::new(400, "the PROXY line is too long")),
    };
    let wrong = || Refusal::quoting(400, "invalid PROXY line", line);
    let text =
        line.strip_suffix(b"\r\n").and_then(|text| std::str::from_utf8(text).ok()).ok_or_else(wrong)?;
    let words = text.split(' ').collect::<Vec<_>>();
    let info = match words[..] {
        // What follows UNKNOWN is to be ignored.
        ["PROXY", "UNKNOWN", ..] => ProxyInfo::Local,
        ["PROXY", family, source, destination, source_port, destination_port] => {
            let address = |text: &str| match family {
                "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
                "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
                _ => None,
            };
            let port = |text: &str| scan::decimal(text.as_bytes()).and_then(|port| u16::try_from(port).ok());
            let socket = |host, number| Some(SocketAddr::new(address(host)?, port(number)?));
            ProxyInfo::Proxied {
                source: socket(source, source_port).ok_or_else(wrong)?,
                destination: socket(destination, destination_port).ok_or_else(wrong)?,
            }
        }
        _ => return Err(wrong()),
    };
    Ok(Some((line.len(), info)))
}

fn parse_v2(input: &[u8]) -> Result<Option<(usize, ProxyInfo)>, Refusal> {
    let Some(&[command, family, high, low]) = input.get(V2_SIGNATURE.len()..).and_then(<[u8]>::first_chunk)
    else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > PROXY_TAIL_BYTES_MAX {
        return Err(Refusal::new(400, "the PROXY header is too long"));
    }
    if !matches!(command, 0x20 | 0x21) {
        return Err(Refusal::new(400, "unknown version or command in the PROXY header"));
    }
    let Some(tail) = input.get(V2_FIXED_BYTES..V2_FIXED_BYTES + len) else { return Ok(None) };
    const SHORT: Refusal = Refusal::new(400, "the addresses of the PROXY header are incomplete");
    let info = match (command, family) {
        // LOCAL: the addresses are to be ignored. So are UNSPEC, and unix sockets of the proxy's
        // own machine, which say nothing of a client's address.
        (0x20, _) | (_, 0x00 | 0x01 | 0x30..=0x32) => ProxyInfo::Local,
        (_, 0x11) => {
            let &[a, b, c, d, e, f, g, h, ..] = tail else { return Err(SHORT) };
            let Some(&[i, j, k, l]) = tail.get(8..).and_then(<[u8]>::first_chunk) else { return Err(SHORT) };
            ProxyInfo::Proxied {
                source: SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([i, j])),
                destination: SocketAddr::new(Ipv4Addr::new(e, f, g, h).into(), u16::from_be_bytes([k, l])),
            }
        }
        (_, 0x21) => {
            let address = |at: usize| {
                tail.get(at..).and_then(<[u8]>::first_chunk::<16>).map(|bytes| Ipv6Addr::from(*bytes))
            };
            let port = |at: usize| {
                tail.get(at..).and_then(<[u8]>::first_chunk::<2>).map(|bytes| u16::from_be_bytes(*bytes))
            };
            let (Some(source), Some(destination), Some(from), Some(to)) =
                (address(0), address(16), port(32), port(34))
            else {
                return Err(SHORT);
            };
            ProxyInfo::Proxied {
                source: SocketAddr::new(source.into(), from),
                destination: SocketAddr::new(destination.into(), to),
            }
        }
        _ => return Err(Refusal::new(400, "the PROXY header is not for a stream")),
    };
    Ok(Some((V2_FIXED_BYTES + len, info)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn proxied(source: &str, destination: &str) -> ProxyInfo {
        ProxyInfo::Proxied { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// However `header` arrives, the answer comes with its last byte, and not one byte earlier.
    fn check(header: &[u8], mode: ProxyMode, expected: ProxyInfo) {
        let all = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
        for cut in 0..header.len() {
            assert_eq!(parse_proxy(&all[..cut], mode), Ok(None), "{} cut at {cut}", all.escape_ascii());
        }
        for cut in header.len()..=all.len() {
            assert_eq!(parse_proxy(&all[..cut], mode), Ok(Some((header.len(), expected))));
        }
    }

    fn v2(command: u8, family: u8, tail: &[u8]) -> Vec<u8> {
        let len = u16::try_from(tail.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &len, tail].concat()
    }

    #[test]
    fn version_1_names_the_client() {
        for mode in [ProxyMode::V1, ProxyMode::Auto] {
            check(
                b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
                mode,
                proxied("192.0.2.1:56324", "198.51.100.2:443"),
            );
            check(b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n", mode, proxied("[2001:db8::1]:0", "[::1]:65535"));
            check(b"PROXY UNKNOWN\r\n", mode, ProxyInfo::Local);
            check(b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n", mode, ProxyInfo::Local);
        }
    }

    #[test]
    fn version_1_refuses_what_is_not_in_its_grammar() {
        for line in [
            &b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n"[..],
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n",
            b"PROXY TCP4  192.0.2.1 198.51.100.2 56324 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 65536\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n",
            b"PROXY \r\n",
            b"PROXY TCP4 \xff 198.51.100.2 56324 443\r\n",
        ] {
            assert_eq!(
                parse_proxy(line, ProxyMode::Auto).unwrap_err().status,
                400,
                "{}",
                line.escape_ascii()
            );
        }
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 93]].concat();
        assert_eq!(parse_proxy(&endless[..106], ProxyMode::V1), Ok(None));
        assert_eq!(parse_proxy(&endless, ProxyMode::V1).unwrap_err().status, 400);
    }

    #[test]
    fn version_2_names_the_client_and_skips_what_follows() {
        let four = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 187];
        let client = proxied("192.0.2.1:56324", "198.51.100.2:443");
        check(&v2(0x21, 0x11, &four), ProxyMode::Auto, client);
        check(&v2(0x21, 0x11, &[&four[..], &[4, 0, 3, 1, 2, 3]].concat()), ProxyMode::V2, client);
        let mut six = [0; 36];
        (six[15], six[31], six[33], six[35]) = (1, 2, 80, 81);
        check(&v2(0x21, 0x21, &six), ProxyMode::V2, proxied("[::1]:80", "[::2]:81"));
    }

    /// The specification: the receiver must use the real peer then.
    #[test]
    fn local_and_unspecified_mean_the_real_peer() {
        for (command, family, tail) in
            [(0x20, 0x00, 0), (0x20, 0x11, 12), (0x21, 0x00, 0), (0x21, 0x01, 3), (0x21, 0x31, 216)]
        {
            check(&v2(command, family, &vec![7; tail]), ProxyMode::Auto, ProxyInfo::Local);
        }
    }

    #[test]
    fn version_2_refuses_other_versions_datagrams_and_short_addresses() {
        for header in [
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x22, &[0; 36]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x11, &[0; PROXY_TAIL_BYTES_MAX + 1]),
        ] {
            assert_eq!(
                parse_proxy(&header, ProxyMode::Auto).unwrap_err().status,
                400,
                "{}",
                header.escape_ascii()
            );
        }
        assert!(parse_proxy(&v2(0x21, 0x11, &[0; PROXY_TAIL_BYTES_MAX]), ProxyMode::V2).unwrap().is_some());
    }

    #[test]
    fn a_request_without_a_header_is_left_alone() {
        let absent = Ok(Some((0, ProxyInfo::Absent)));
        let (one, two) = (b"PROXY UNKNOWN\r\n", v2(0x20, 0, b""));
        assert_eq!(parse_proxy(one, ProxyMode::Off), absent);
        assert_eq!(parse_proxy(one, ProxyMode::V2), absent);
        assert_eq!(parse_proxy(&two, ProxyMode::V1), absent);
        for request in [&b"GET / HTTP/1.1"[..], b"PROPFIND / HTTP/1.1", b"\r\nGET / HTTP/1.1", b"PROXYGET"] {
            assert_eq!(parse_proxy(request, ProxyMode::Auto), absent);
        }
        // It may still become one.
        assert_eq!(parse_proxy(b"P", ProxyMode::Auto), Ok(None));
        assert_eq!(parse_proxy(b"\r\n", ProxyMode::Auto), Ok(None));
    }
}
