//! The command line.

use std::fs;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::load::Plan;
use crate::mix::{Draft, Mix, Site, filler};
use crate::wire::Place;

/// Sends HTTP/1.1 requests to a server and tells how it took them.
///
/// Without --rate it is a closed loop: every connection sends its next request when the answer to the one before has
/// come, which finds the most that a server can do. With --rate it is an open loop: requests have their times
/// beforehand, and latency counts from then on, so that a server that stalls cannot hide it.
#[derive(Debug, Parser)]
#[command(
    name = "ringhorn-loadtest",
    version,
    after_help = "\
Examples:
  ringhorn-loadtest -c 64 -d 10 http://127.0.0.1:8000/
  ringhorn-loadtest -c 64 -d 10 --rate 20000 --warm-up 2 http://127.0.0.1:8000/     latency at a constant rate
  ringhorn-loadtest -c 16 -n 1000 --body-bytes 10240 http://127.0.0.1:8000/upload   a POST of 10 KiB
  ringhorn-loadtest -c 64 --no-keep-alive --unix /run/app.sock http://localhost/    a connection for each request
  ringhorn-loadtest --mix site.json http://127.0.0.1:8000/

A mix is a JSON list, sent in proportion to the weights:
  [{\"weight\": 9, \"path\": \"/\"},
   {\"weight\": 1, \"method\": \"PUT\", \"path\": \"/item\", \"headers\": {\"X-Token\": \"t\"}, \"body_bytes\": 2048}]
with \"body\": TEXT or \"body_file\": PATH instead of \"body_bytes\" where wanted.

Exit code: 0 done; 1 nothing was answered, or --strict and something failed; 2 usage; 3 io_uring is not to be had."
)]
pub struct Arguments {
    /// Where to: http://HOST[:PORT][/PATH[?QUERY]]
    pub url: String,
    /// Connections, over all threads
    #[arg(short, long, default_value_t = 64, value_name = "COUNT")]
    pub connections: usize,
    /// Threads, each with a ring and a share of the connections
    #[arg(short, long, default_value_t = 1, value_name = "COUNT")]
    pub threads: usize,
    /// Begin requests for so long, e.g. 10, 500ms, 2m [default: 10s, unless -n is given]
    #[arg(short, long, value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,
    /// Begin so many requests
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub requests: Option<u64>,
    /// Open loop: begin so many requests a second, whatever becomes of them
    #[arg(short = 'R', long, value_name = "PER_SECOND", value_parser = rate)]
    pub rate: Option<f64>,
    /// Requests in flight on each connection
    #[arg(short, long, default_value_t = 1, value_name = "COUNT")]
    pub pipeline: usize,
    /// A connection for each request
    #[arg(long, conflicts_with = "pipeline")]
    pub no_keep_alive: bool,
    /// Send for so long before anything counts
    #[arg(short, long, default_value = "0", value_name = "TIME", value_parser = time)]
    pub warm_up: Duration,
    /// Longest wait for a connection or an answer
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = time)]
    pub timeout: Duration,
    /// CPUs for the threads, in turn, e.g. 1 or 2,3
    #[arg(long, value_name = "CPUS", value_delimiter = ',')]
    pub pin: Vec<usize>,
    /// Connect to this unix socket instead of the URL's host
    #[arg(long, value_name = "PATH")]
    pub unix: Option<PathBuf>,

    /// Method [default: GET, with a body POST]
    #[arg(short = 'X', long, value_name = "METHOD", help_heading = "What is sent")]
    pub method: Option<String>,
    /// A header field, e.g. 'Accept: text/html'; may be repeated
    #[arg(short = 'H', long = "header", value_name = "FIELD", help_heading = "What is sent")]
    pub headers: Vec<String>,
    /// A body of this text
    #[arg(long, value_name = "TEXT", group = "content", help_heading = "What is sent")]
    pub body: Option<String>,
    /// A body of so many bytes
    #[arg(long, value_name = "COUNT", group = "content", help_heading = "What is sent")]
    pub body_bytes: Option<u64>,
    /// A body from this file
    #[arg(long, value_name = "FILE", group = "content", help_heading = "What is sent")]
    pub body_file: Option<PathBuf>,
    /// Requests of several kinds from this file (below)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["method", "headers", "content"], help_heading = "What is sent")]
    pub mix: Option<PathBuf>,

    /// Write the results as JSON to this file; - writes them to standard output instead of the text
    #[arg(long, value_name = "FILE", help_heading = "What is told")]
    pub json: Option<PathBuf>,
    /// Write the latencies as an HdrHistogram log (V2) to this file
    #[arg(long, value_name = "FILE", help_heading = "What is told")]
    pub hdr_log: Option<PathBuf>,
    /// No progress bar
    #[arg(short, long, help_heading = "What is told")]
    pub quiet: bool,
    /// Exit code 1 if any request failed or was answered with 4xx or 5xx
    #[arg(long, help_heading = "What is told")]
    pub strict: bool,
}

impl Arguments {
    /// Makes the plan.
    ///
    /// # Errors
    /// A text for the user: what is wrong, and with what.
    pub fn plan(&self) -> Result<Plan, String> {
        let (site, host, port) = parse_url(&self.url)?;
        for (name, count) in
            [("--connections", self.connections), ("--threads", self.threads), ("--pipeline", self.pipeline)]
        {
            if count == 0 {
                return Err(format!("{name} must be 1 at least"));
            }
        }
        if self.timeout.is_zero() {
            return Err("--timeout must be longer than nothing".into());
        }
        let place = match &self.unix {
            Some(path) => Place::Unix(path.clone()),
            None => {
                let addrs = (host.as_str(), port).to_socket_addrs();
                let addr = addrs.map_err(|error| format!("cannot find {host}: {error}"))?.next();
                Place::Tcp(addr.ok_or_else(|| format!("{host} has no address"))?)
            }
        };
        let mix = match &self.mix {
            Some(file) => Mix::load(file, &site, self.no_keep_alive)?,
            None => Mix::of(self.draft()?.finish(&site, self.no_keep_alive)?),
        };
        let duration = match (self.duration, self.requests) {
            (None, None) => Some(Duration::from_secs(10)),
            (duration, _) => duration,
        };
        Ok(Plan {
            place,
            mix,
            connections: self.connections,
            threads: self.threads.min(self.connections),
            cpus: self.pin.clone(),
            duration,
            requests: self.requests,
            rate: self.rate,
            pipeline: self.pipeline,
            keep_alive: !self.no_keep_alive,
            warm_up: self.warm_up,
            timeout: self.timeout,
        })
    }

    fn draft(&self) -> Result<Draft, String> {
        let body = match (&self.body, self.body_bytes, &self.body_file) {
            (Some(text), _, _) => Some(text.clone().into_bytes()),
            (_, Some(count), _) => Some(filler(count)?),
            (_, _, Some(file)) => {
                Some(fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?)
            }
            _ => None,
        };
        let split = |field: &String| match field.split_once(':') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => Err(format!("{field:?} is no header field: it needs a colon")),
        };
        let headers = self.headers.iter().map(split).collect::<Result<_, _>>()?;
        Ok(Draft { method: self.method.clone(), path: None, headers, body })
    }
}

fn parse_url(url: &str) -> Result<(Site, String, u16), String> {
    if url.starts_with("https://") {
        return Err("https is not spoken here: give the server's plain port".into());
    }
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url:?} does not begin with http://"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse().map_err(|_| format!("{port:?} in {url:?} is no port"))?)
        }
        _ => (authority, 80),
    };
    if host.is_empty() || authority.contains('@') {
        return Err(format!("{url:?} has no host"));
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((Site { authority: authority.to_owned(), path }, bare, port))
}

/// Seconds, or with a unit: `2`, `0.5`, `500ms`, `10s`, `2m`.
fn time(text: &str) -> Result<Duration, String> {
    let (number, scale) = match text {
        _ if text.ends_with("ms") => (&text[..text.len() - 2], 0.001),
        _ if text.ends_with('s') => (&text[..text.len() - 1], 1.0),
        _ if text.ends_with('m') => (&text[..text.len() - 1], 60.0),
        _ => (text, 1.0),
    };
    let seconds = number.parse::<f64>().ok().map(|number| number * scale);
    // A year; also, what a Duration cannot hold is refused here.
    let seconds = seconds.filter(|seconds| (0.0..3.2e7).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "no time; write 10, 500ms, 10s or 2m".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.001..1e8).contains(rate));
    rate.ok_or_else(|| "no rate: requests per second, more than none".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn addresses_are_understood() {
        for (url, authority, path, host, port) in [
            ("http://127.0.0.1:8000/a?b", "127.0.0.1:8000", "/a?b", "127.0.0.1", 8000),
            ("http://localhost", "localhost", "/", "localhost", 80),
            ("http://localhost?x=1", "localhost", "/?x=1", "localhost", 80),
            ("http://[::1]:81/#top", "[::1]:81", "/", "::1", 81),
            ("http://[::1]/", "[::1]", "/", "::1", 80),
        ] {
            let (site, found, number) = parse_url(url).unwrap();
            assert_eq!(
                (site.authority.as_str(), site.path.as_str(), found.as_str(), number),
                (authority, path, host, port)
            );
        }
        for url in ["https://a/", "ftp://a/", "http:///x", "http://a:b/", "http://u:p@h/", "localhost:8000"] {
            assert!(parse_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("2").unwrap(), Duration::from_secs(2));
        assert_eq!(time("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(time("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(time("2m").unwrap(), Duration::from_secs(120));
        for text in ["", "x", "-1", "1h", "nan", "1e30"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
