//! What is sent: requests made ready once, and in which order they come.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// Longest order of a mix before it repeats; weights are reduced to their smallest whole numbers first.
const ORDER_MAX: u64 = 100_000;

/// Where requests go, as far as they say it themselves.
#[derive(Clone, Debug)]
pub struct Site {
    /// The `Host` header.
    pub authority: String,
    /// Path and query of requests that name none.
    pub path: String,
}

/// One kind of request.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the report calls it: method and path.
    pub name: String,
    /// Whether its answer has no body.
    pub is_head: bool,
    /// Head and body.
    pub bytes: Vec<u8>,
}

/// What a request is made from.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The method; GET without a body and POST with one, if `None`.
    pub method: Option<String>,
    /// Path and query; the site's if `None`.
    pub path: Option<String>,
    /// Further header fields.
    pub headers: Vec<(String, String)>,
    /// The body, if it has one.
    pub body: Option<Vec<u8>>,
}

impl Draft {
    /// Makes the request. `close` asks the server to end the connection after it.
    ///
    /// # Errors
    /// A line break or a space where none may be.
    pub fn finish(&self, site: &Site, close: bool) -> Result<Request, String> {
        let method = self.method.as_deref().unwrap_or(if self.body.is_some() { "POST" } else { "GET" });
        let path = self.path.as_deref().unwrap_or(&site.path);
        if method.is_empty() || method.contains(|char: char| !char.is_ascii_graphic()) {
            return Err(format!("{method:?} is no method"));
        }
        if !path.starts_with(['/', '*']) || path.contains(|char: char| char.is_ascii_control() || char == ' ')
        {
            return Err(format!("{path:?} is no path: it begins with / and has no spaces"));
        }
        let given = |name: &str| self.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !given("host") {
            head += &format!("Host: {}\r\n", site.authority);
        }
        for (name, value) in &self.headers {
            if name.is_empty() || format!("{name}{value}").contains(['\r', '\n', '\0']) {
                return Err(format!("{name:?}: {value:?} is no header"));
            }
            head += &format!("{name}: {value}\r\n");
        }
        if close && !given("connection") {
            head += "Connection: close\r\n";
        }
        if let Some(body) = &self.body
            && !given("content-length")
        {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        Ok(Request { name: format!("{method} {path}"), is_head: method == "HEAD", bytes })
    }
}

/// All kinds of requests, and the order in which they are sent.
#[derive(Clone, Debug)]
pub struct Mix {
    /// The kinds.
    pub requests: Vec<Request>,
    order: Vec<u16>,
}

impl Mix {
    /// A mix of one kind.
    pub fn of(request: Request) -> Self {
        Self { requests: vec![request], order: vec![0] }
    }

    /// Reads a mix from a file: a JSON list of objects with `weight`, `method`, `path`, `headers`, and one of `body`,
    /// `body_bytes` and `body_file`.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is not understood. The text names the entry.
    pub fn load(file: &Path, site: &Site, close: bool) -> Result<Self, String> {
        let name = file.display();
        let text = fs::read_to_string(file).map_err(|error| format!("cannot read {name}: {error}"))?;
        let list: Value =
            serde_json::from_str(&text).map_err(|error| format!("{name} is no JSON: {error}"))?;
        let list = list.as_array().filter(|list| !list.is_empty() && list.len() < 1000);
        let list = list.ok_or_else(|| format!("{name} is no list of requests"))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let (mut requests, mut weights) = (Vec::new(), Vec::new());
        for (index, entry) in list.iter().enumerate() {
            let wrong = |error: String| format!("{name}, entry {}: {error}", index + 1);
            let (draft, weight) = draft(entry, folder).map_err(wrong)?;
            requests.push(draft.finish(site, close).map_err(wrong)?);
            weights.push(weight);
        }
        let order = order(&weights).map_err(|error| format!("{name}: {error}"))?;
        Ok(Self { requests, order })
    }

    /// The kind of the request with this number.
    pub fn kind(&self, number: u64) -> usize {
        usize::from(self.order[(number % self.order.len() as u64) as usize])
    }
}

fn draft(entry: &Value, folder: &Path) -> Result<(Draft, u64), String> {
    let entry = entry.as_object().ok_or("is no object")?;
    let (mut draft, mut weight) = (Draft::default(), 1);
    let text = |name: &str, value: &Value| match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("{name} is no text")),
    };
    for (name, value) in entry {
        let body = match name.as_str() {
            "weight" => {
                weight = value.as_u64().filter(|weight| *weight > 0).ok_or("weight is no number from 1")?;
                continue;
            }
            "method" => {
                draft.method = Some(text(name, value)?);
                continue;
            }
            "path" => {
                draft.path = Some(text(name, value)?);
                continue;
            }
            "headers" => {
                for (name, value) in value.as_object().ok_or("headers is no object")? {
                    draft.headers.push((name.clone(), text(name, value)?));
                }
                continue;
            }
            "body" => text(name, value)?.into_bytes(),
            "body_bytes" => filler(value.as_u64().ok_or("body_bytes is no number")?)?,
            "body_file" => {
                let file = folder.join(text(name, value)?);
                fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?
            }
            _ => return Err(format!("{name:?} is not known")),
        };
        if draft.body.replace(body).is_some() {
            return Err("it has more than one of body, body_bytes and body_file".into());
        }
    }
    Ok((draft, weight))
}

/// A body of that many bytes.
///
/// # Errors
/// It is too large to be kept in memory.
pub fn filler(count: u64) -> Result<Vec<u8>, String> {
    if count > 1 << 30 {
        return Err("a body of more than 1 GiB".into());
    }
    Ok((0..count).map(|at| b'a' + (at % 26) as u8).collect())
}

/// The kinds in the order in which they are sent: each as often as its weight says, and spread evenly.
fn order(weights: &[u64]) -> Result<Vec<u16>, String> {
    let divisor = weights.iter().copied().reduce(gcd).unwrap_or(1);
    let weights: Vec<u64> = weights.iter().map(|weight| weight / divisor).collect();
    let total = weights.iter().fold(0_u64, |sum, weight| sum.saturating_add(*weight));
    if total > ORDER_MAX {
        return Err(format!("the weights add up to {total} parts; {ORDER_MAX} are the most"));
    }
    // Each turn everybody gains its weight, and the richest is sent and pays for all: nginx's way to choose upstreams.
    let mut credits = vec![0_i64; weights.len()];
    let mut order = Vec::with_capacity(total as usize);
    for _ in 0..total {
        let mut best = 0;
        for (index, weight) in weights.iter().enumerate() {
            credits[index] += *weight as i64;
            if credits[index] > credits[best] {
                best = index;
            }
        }
        credits[best] -= total as i64;
        order.push(best as u16);
    }
    Ok(order)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn site() -> Site {
        Site { authority: "localhost:8000".into(), path: "/".into() }
    }

    #[test]
    fn a_request_is_complete_and_leaves_what_is_given_alone() {
        let plain = Draft::default().finish(&site(), false).unwrap();
        assert_eq!(plain.bytes, b"GET / HTTP/1.1\r\nHost: localhost:8000\r\n\r\n");
        let draft = Draft {
            path: Some("/x?y=1".into()),
            headers: vec![("host".into(), "example.org".into()), ("X-A".into(), "b".into())],
            body: Some(b"ab".to_vec()),
            ..Draft::default()
        };
        let wanted = b"POST /x?y=1 HTTP/1.1\r\nhost: example.org\r\nX-A: b\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab";
        assert_eq!(draft.finish(&site(), true).unwrap().bytes, wanted);
    }

    #[test]
    fn what_would_break_the_request_is_refused() {
        for draft in [
            Draft { method: Some("GET /".into()), ..Draft::default() },
            Draft { path: Some("/a b".into()), ..Draft::default() },
            Draft { path: Some("a".into()), ..Draft::default() },
            Draft { headers: vec![("A".into(), "b\r\nC: d".into())], ..Draft::default() },
        ] {
            assert!(draft.finish(&site(), false).is_err(), "{draft:?}");
        }
    }

    #[test]
    fn each_kind_comes_as_often_as_its_weight_says_and_spread_evenly() {
        assert_eq!(order(&[10, 30]).unwrap(), [1, 0, 1, 1]);
        assert_eq!(order(&[1, 1, 1]).unwrap(), [0, 1, 2]);
        let many = order(&[97, 3]).unwrap();
        assert_eq!(many.iter().filter(|kind| **kind == 1).count(), 3);
        assert!(order(&[1, ORDER_MAX]).is_err());
    }

    #[test]
    fn a_file_is_read_and_its_mistakes_are_named() {
        let folder = std::env::temp_dir().join(format!("ringhorn-loadtest-mix-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("mix.json");
        fs::write(folder.join("body"), "from a file").unwrap();
        let load = |text: &str| {
            fs::write(&file, text).unwrap();
            Mix::load(&file, &site(), false)
        };
        let mix = load(
            r#"[{"weight": 3, "path": "/a"}, {"path": "/b", "method": "PUT", "headers": {"X": "y"}, "body_file": "body"},
                {"weight": 2, "body_bytes": 3}]"#,
        )
        .unwrap();
        let names: Vec<&str> = mix.requests.iter().map(|request| request.name.as_str()).collect();
        assert_eq!(names, ["GET /a", "PUT /b", "POST /"]);
        assert!(mix.requests[1].bytes.ends_with(b"\r\n\r\nfrom a file"));
        assert!(mix.requests[2].bytes.ends_with(b"Content-Length: 3\r\n\r\nabc"));
        assert_eq!((0..6).filter(|number| mix.kind(*number) == 0).count(), 3);
        for (text, part) in [
            ("{}", "no list"),
            ("[]", "no list"),
            ("[{\"pth\": \"/\"}]", "entry 1: \"pth\" is not known"),
            ("[{}, {\"weight\": 0}]", "entry 2: weight"),
            ("[{\"body\": \"a\", \"body_bytes\": 1}]", "more than one"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
