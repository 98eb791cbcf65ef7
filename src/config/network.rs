//! Addresses in settings: what to bind, and whom to trust.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::value::Value;

/// Where to listen: one value of `bind`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// A TCP port. The host is a name or an address in lower case, without brackets.
    Tcp {
        /// Name or address; `0.0.0.0` when the user left it out.
        host: String,
        /// Port; 0 lets the kernel choose one.
        port: u16,
    },
    /// A Unix socket. A path that starts with a zero byte is an abstract name.
    Unix(PathBuf),
    /// A listening socket that this process inherited.
    Fd(i32),
}

impl Bind {
    /// Port when the address has none, as in gunicorn.
    pub const PORT_DEFAULT: u16 = 8000;

    /// Reads gunicorn's grammar: `HOST`, `HOST:PORT`, `[V6]:PORT`, `:PORT`, each with `tcp://` in
    /// front or without, `unix:PATH`, `unix://PATH`, `fd://N`.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err("unix: needs a path, as in unix:/run/app.sock".to_owned());
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if let Some(number) = text.strip_prefix("fd://") {
            return match number.parse() {
                Ok(fd) if fd >= 0 => Ok(Self::Fd(fd)),
                _ => Err(format!("{number:?} is not a descriptor; write fd://3 for descriptor 3")),
            };
        }
        let address = text.strip_prefix("tcp://").unwrap_or(text);
        if address.contains("//") {
            return Err("an address is HOST:PORT, unix:PATH or fd://N, without http://".to_owned());
        }
        if let Some(rest) = address.strip_prefix('[') {
            let Some((host, after)) = rest.split_once(']') else {
                return Err("the bracket is not closed; write [::1]:8000".to_owned());
            };
            if host.parse::<std::net::Ipv6Addr>().is_err() && !host.contains('%') {
                return Err(format!("{host:?} in the brackets is not an IPv6 address"));
            }
            let port = match after {
                "" => Self::PORT_DEFAULT,
                _ => after.strip_prefix(':').ok_or("write [ADDRESS]:PORT").and_then(port)?,
            };
            return Ok(Self::Tcp { host: host.to_lowercase(), port });
        }
        if address.matches(':').count() > 1 {
            return Err(if address.parse::<IpAddr>().is_ok() {
                format!("an IPv6 address stands in brackets; write [{address}]:8000")
            } else {
                "it has too many colons; write HOST:PORT".to_owned()
            });
        }
        if address.contains([',', ' ']) {
            return Err("it must be one address; repeat --bind for more".to_owned());
        }
        let (host, port) = match address.split_once(':') {
            Some((host, number)) => (host, port(number)?),
            None => (address, Self::PORT_DEFAULT),
        };
        let host = if host.is_empty() { "0.0.0.0".to_owned() } else { host.to_lowercase() };
        Ok(Self::Tcp { host, port })
    }
}

fn port(text: &str) -> Result<u16, &'static str> {
    // `parse` alone would take "+80".
    if text.starts_with('+') {
        return Err("the port must be a number from 0 to 65535");
    }
    text.parse().map_err(|_| "the port must be a number from 0 to 65535")
}

/// As gunicorn logs addresses: `http://127.0.0.1:8000`, `unix:/run/app.sock`.
impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.to_string_lossy().replace('\0', "@")),
            Self::Fd(fd) => write!(f, "fd://{fd}"),
        }
    }
}

/// Peers whose word is believed: `forwarded_allow_ips`, `proxy_allow_ips`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    everybody: bool,
    networks: Vec<IpNet>,
}

impl Trusted {
    /// Whether `peer` is among them. An IPv4 address in IPv6 clothes counts as IPv4. Peers on Unix
    /// sockets have no address and are trusted by those who ask, as gunicorn does.
    #[must_use]
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.everybody || self.networks.iter().any(|network| network.contains(&peer))
    }

    /// Reads a list of texts: addresses, networks whose host bits are zero, `*`.
    ///
    /// # Errors
    /// Which item is not one of these.
    pub(crate) fn from_value(value: &Value) -> Result<Self, String> {
        let mut trusted = Self::default();
        let Value::List(items) = value else { return Ok(trusted) };
        for item in items {
            let Value::Str(text) = item else { return Err(format!("{item} must be text")) };
            if text == "*" {
                trusted.everybody = true;
            } else if let Ok(address) = text.parse::<IpAddr>() {
                trusted.networks.push(IpNet::from(address));
            } else if let Ok(network) = text.parse::<IpNet>() {
                // A network with host bits is mostly a slip of the pen, and trust is no place for
                // guesses. gunicorn refuses it too.
                if network.addr() != network.network() {
                    return Err(format!("{text:?} has host bits; the network is {}", network.trunc()));
                }
                trusted.networks.push(network);
            } else {
                return Err(format!("{text:?} is neither an IP address nor a network nor *"));
            }
        }
        Ok(trusted)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn tcp(host: &str, port: u16) -> Result<Bind, String> {
        Ok(Bind::Tcp { host: host.to_owned(), port })
    }

    #[test]
    fn every_form_of_bind_is_read() {
        for (text, expected) in [
            ("127.0.0.1:8000", tcp("127.0.0.1", 8000)),
            ("127.0.0.1", tcp("127.0.0.1", 8000)),
            ("localhost", tcp("localhost", 8000)),
            ("Example.COM:80", tcp("example.com", 80)),
            (":8080", tcp("0.0.0.0", 8080)),
            ("", tcp("0.0.0.0", 8000)),
            ("0.0.0.0:0", tcp("0.0.0.0", 0)),
            ("[::1]:9000", tcp("::1", 9000)),
            ("[::]", tcp("::", 8000)),
            ("[FE80::1]:65535", tcp("fe80::1", 65535)),
            ("tcp://127.0.0.1:80", tcp("127.0.0.1", 80)),
            ("tcp://[::1]:80", tcp("::1", 80)),
            ("unix:/run/app.sock", Ok(Bind::Unix("/run/app.sock".into()))),
            ("unix:///run/app.sock", Ok(Bind::Unix("/run/app.sock".into()))),
            ("unix:app.sock", Ok(Bind::Unix("app.sock".into()))),
            ("unix:\0name", Ok(Bind::Unix("\0name".into()))),
            ("fd://3", Ok(Bind::Fd(3))),
        ] {
            assert_eq!(Bind::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_address_says_what_to_write() {
        for (text, hint) in [
            ("127.0.0.1:65536", "0 to 65535"),
            ("127.0.0.1:-1", "0 to 65535"),
            ("127.0.0.1:+1", "0 to 65535"),
            ("127.0.0.1:http", "0 to 65535"),
            ("127.0.0.1:", "0 to 65535"),
            ("::1", "[::1]:8000"),
            ("a:b:c", "too many colons"),
            ("[::1", "[::1]:8000"),
            ("[::1]80", "[ADDRESS]:PORT"),
            ("[localhost]:80", "not an IPv6 address"),
            ("http://127.0.0.1:80", "without http://"),
            ("a:1,b", "repeat --bind"),
            ("unix:", "needs a path"),
            ("fd://x", "fd://3"),
            ("fd://-1", "fd://3"),
        ] {
            let error = Bind::parse(text).unwrap_err();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    /// People and scripts grep "Listening at: http://127.0.0.1:8000".
    #[test]
    fn binds_print_as_gunicorn_logs_them() {
        for (text, shown) in [
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("[::1]:8000", "http://[::1]:8000"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("fd://3", "fd://3"),
        ] {
            assert_eq!(Bind::parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn trust_is_by_address_and_by_network() {
        let list = |items: &[&str]| {
            Trusted::from_value(&Value::List(items.iter().map(|item| Value::text(*item)).collect()))
        };
        let trusted = list(&["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"]).unwrap();
        for (peer, expected) in [
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("::ffff:10.0.0.1", true),
            ("::1", false),
            ("2001:db8::5", true),
        ] {
            assert_eq!(trusted.contains(peer.parse().unwrap()), expected, "{peer}");
        }
        assert!(list(&["*"]).unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!(list(&["10.0.0.1/8"]).unwrap_err().contains("10.0.0.0/8"));
        assert!(list(&["localhost"]).is_err());
    }
}
