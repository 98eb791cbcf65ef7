//! Files below one directory. Disks may be slow, so files are opened by the worker's threads; their bytes go from
//! the page cache to the socket.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use ringhorn::{Method, Request, Responder, Response, StatusCode, Worker};

use crate::kv;

/// The variable that names the directory.
const VARIABLE: &str = "RINGHORN_DEMO_STATIC";

pub(crate) struct Files {
    worker: Worker,
    root: PathBuf,
}

impl Files {
    pub(crate) fn new(worker: &Worker) -> Self {
        let root = std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from("static"), PathBuf::from);
        Self { worker: worker.clone(), root }
    }

    pub(crate) fn serve(&self, request: &Request<'_>, response: &mut Response<'_>) {
        if ![Method::GET, Method::HEAD].contains(&request.method()) {
            response.header("Allow", "GET, HEAD");
            return kv::error(response, StatusCode::METHOD_NOT_ALLOWED, "files can only be read");
        }
        let name = request.path().strip_prefix(b"/static/").unwrap_or_default();
        let Some(path) = below(&self.root, name) else {
            return kv::error(response, StatusCode::NOT_FOUND, "there is no such file");
        };
        response.header("Content-Type", content_type(&path));
        let responder = response.defer();
        let opened = self.worker.blocking(move || open(&path));
        self.worker.spawn(async move {
            match opened.await {
                Ok(Ok((file, length))) => responder.file(file, length),
                Ok(Err(error)) if error.kind() != io::ErrorKind::PermissionDenied => {
                    fail(responder, StatusCode::NOT_FOUND, "there is no such file");
                }
                Ok(Err(_)) => fail(responder, StatusCode::FORBIDDEN, "the file may not be read"),
                Err(_) => fail(responder, StatusCode::SERVICE_UNAVAILABLE, "too many files are waited for"),
            }
        });
    }
}

fn fail(mut responder: Responder, status: StatusCode, message: &str) {
    responder.status(status);
    responder.answer(format!("{{\"error\":\"{message}\"}}\n"));
}

/// The file that `name` means, percent-decoded; nothing that would lead out of `root`.
fn below(root: &Path, name: &[u8]) -> Option<PathBuf> {
    let name = String::from_utf8(kv::decode(name)?).ok()?;
    let mut path = root.to_owned();
    for part in name.split('/') {
        if matches!(part, "" | "." | "..") || part.contains('\0') {
            return None;
        }
        path.push(part);
    }
    Some(path)
}

/// Opens a regular file, and says how long it is.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((file, about.len()))
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_root() {
        let root = Path::new("/srv");
        for name in ["../x", "a/../../x", "%2e%2e/x", "/etc/passwd", "a//b", "", "a/", "%00", "%zz", "%2"] {
            assert_eq!(below(root, name.as_bytes()), None, "{name}");
        }
        assert_eq!(below(root, b"a%20b/c.txt"), Some(PathBuf::from("/srv/a b/c.txt")));
    }
}
