//! gunicorn's hooks: functions of the config file that are called at gunicorn's places, with objects that have
//! the attributes people use there.
//!
//! Those objects are Python (`ringhorn._server`); nothing of this exists when the config file has no hook. The
//! hooks around requests are called from here, and a runner without them does not notice.

use pyo3::exceptions::PySystemExit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use tracing::error;

use super::confpy::to_python;
use super::host::Source;
use super::object::latin1;
use super::signals;
use super::wsgi::traceback;
use crate::app::{Exchange, Peer, Request, Scheme};
use crate::config::settings::{Kind, SETTINGS};
use crate::config::{Settings, Value};
use crate::error::{Exit, StartError};
use crate::http::Version;
use crate::sys::clock;

/// What gunicorn exits with after an exception that nobody caught.
const EXIT_UNCAUGHT: i32 = 255;

/// The server as hooks see it.
pub(super) struct Hooks {
    server: Py<PyAny>,
}

impl Hooks {
    /// The hooks of `settings`, if there are any.
    ///
    /// # Errors
    /// What Python raises.
    pub(super) fn of(py: Python<'_>, settings: &Settings, source: &Source) -> PyResult<Option<Self>> {
        let set = SETTINGS.iter().filter(|setting| matches!(setting.kind, Kind::Hook(_)));
        // The logger's methods are given what hooks are given.
        if !settings.python_log
            && set
                .map(|setting| settings.value(setting.name))
                .all(|value| matches!(value, Some((Value::None, _)) | None))
        {
            return Ok(None);
        }
        let server = py.import("ringhorn._server")?.getattr("Server")?.call1((
            configuration(py, settings)?,
            &source.load,
            &source.owner,
        ))?;
        Ok(Some(Self { server: server.unbind() }))
    }

    /// New settings, from a reload.
    ///
    /// # Errors
    /// What Python raises.
    pub(super) fn configure(&self, py: Python<'_>, settings: &Settings) -> PyResult<()> {
        self.server.bind(py).call_method1("_configure", (configuration(py, settings)?,)).map(drop)
    }

    /// The `old` settings again, after a reload that came to nothing.
    ///
    /// # Errors
    /// What Python raises.
    pub(super) fn resume(&self, py: Python<'_>, old: &Settings) -> PyResult<()> {
        self.server.bind(py).call_method1("_resume", (configuration(py, old)?,)).map(drop)
    }

    /// The application, when a hook had it loaded (`server.app.wsgi()`), or put one in its place.
    ///
    /// # Errors
    /// What Python raises.
    pub(super) fn application(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let application = self.server.bind(py).getattr("app")?.getattr("callable")?;
        Ok(if application.is_none() { None } else { Some(application.unbind()) })
    }

    /// Runs a step of the server's life, and the hook that belongs to it.
    ///
    /// # Errors
    /// What the hook raised. `exit` is how the process is to end then, unless the hook chose a code itself.
    pub(super) fn call<'py>(
        &self,
        py: Python<'py>,
        step: &str,
        arguments: impl pyo3::call::PyCallArgs<'py>,
        exit: Exit,
    ) -> Result<(), StartError> {
        match self.server.bind(py).call_method1(step, arguments) {
            Ok(_) => Ok(()),
            Err(error) => Err(failure(py, step, &error, exit)),
        }
    }

    /// As [`Hooks::call`], where a failure is logged and changes nothing.
    pub(super) fn call_logged<'py>(
        &self,
        py: Python<'py>,
        step: &str,
        arguments: impl pyo3::call::PyCallArgs<'py>,
        what: &str,
    ) {
        if let Err(error) = self.server.bind(py).call_method1(step, arguments) {
            error!("{what}:\n{}", traceback(py, &error));
        }
    }

    /// The hooks around requests, if they are set.
    ///
    /// # Errors
    /// What Python raises.
    pub(super) fn around_requests(
        &self,
        py: Python<'_>,
        settings: &Settings,
    ) -> PyResult<Option<RequestHooks>> {
        let hook = |name: &str| match settings.value(name) {
            Some((value @ Value::Object(object), _)) => {
                to_python(py, value).map(|function| Some((function.unbind(), object.arity())))
            }
            _ => Ok(None),
        };
        let (pre, post) = (hook("pre_request")?, hook("post_request")?);
        // Messages alone may be Python's, too.
        let log = match super::log::logger(py) {
            Some(logger) if settings.python_log => {
                Some((py.import("ringhorn._logger")?.getattr("access")?.unbind(), logger))
            }
            _ => None,
        };
        if pre.is_none() && post.is_none() && log.is_none() {
            return Ok(None);
        }
        let module = py.import("ringhorn._server")?;
        Ok(Some(RequestHooks {
            worker: self.server.bind(py).getattr("_worker")?.unbind(),
            request: module.getattr("Request")?.unbind(),
            response: module.getattr("Response")?.unbind(),
            log,
            pre: pre.map(|(function, _)| function),
            post: post.map(|(function, arity)| (function, arity.unwrap_or(4))),
        }))
    }
}

fn failure(py: Python<'_>, step: &str, error: &PyErr, exit: Exit) -> StartError {
    if error.is_instance_of::<PySystemExit>(py) {
        // As Python ends a program: no value is 0, a number is itself, anything else is 1.
        let code = error.value(py).getattr("code").ok();
        let code = code.map_or(1, |code| if code.is_none() { 0 } else { code.extract().unwrap_or(1) });
        return StartError::new(Exit::Code(code), format!("the hook {step} left with code {code}"));
    }
    StartError::new(exit, format!("the hook {step} failed: {}", error.value(py))).detail(traceback(py, error))
}

/// What a PROXY header said, as gunicorn's `req.proxy_protocol_info` has it; `None` without one.
fn proxy_information<'py>(py: Python<'py>, request: &Request) -> PyResult<Bound<'py, PyAny>> {
    let (Some(destination), Peer::Inet { host, port, .. }) =
        (request.link().proxied_to(), request.link().peer())
    else {
        return Ok(py.None().into_bound(py));
    };
    let port: u16 = port.parse().unwrap_or(0);
    let information = PyDict::new(py);
    information.set_item("proxy_protocol", if destination.is_ipv4() { "TCP4" } else { "TCP6" })?;
    information.set_item("client_addr", &**host)?;
    information.set_item("client_port", port)?;
    information.set_item("proxy_addr", destination.ip().to_string())?;
    information.set_item("proxy_port", destination.port())?;
    Ok(information.into_any())
}

/// The variables that access lines are made of, for a request that never reached the application.
fn request_variables<'py>(py: Python<'py>, request: &Request) -> PyResult<Bound<'py, PyDict>> {
    let environ = PyDict::new(py);
    environ.set_item("REQUEST_METHOD", latin1(py, request.method()))?;
    environ.set_item("RAW_URI", latin1(py, request.target()))?;
    environ.set_item("PATH_INFO", latin1(py, request.path()))?;
    environ.set_item("QUERY_STRING", latin1(py, request.query()))?;
    environ.set_item("SERVER_PROTOCOL", request.version().name())?;
    environ.set_item("REMOTE_ADDR", request.link().peer().host())?;
    Ok(environ)
}

/// How the master ends after a hook that failed in its main loop.
pub(super) const UNCAUGHT: Exit = Exit::Code(EXIT_UNCAUGHT);

/// Every setting with its value, as `cfg` has it.
pub(super) fn configuration<'py>(py: Python<'py>, settings: &Settings) -> PyResult<Bound<'py, PyDict>> {
    let values = PyDict::new(py);
    for setting in SETTINGS {
        if let Some((value, _)) = settings.value(setting.name) {
            values.set_item(setting.name, to_python(py, value)?)?;
        }
    }
    values.set_item("workers", settings.workers)?;
    values.set_item("threads", settings.threads)?;
    values.set_item("wsgi_app", &settings.app)?;
    // Names became numbers when the settings were read.
    values.set_item("user", settings.user)?;
    values.set_item("group", settings.group)?;
    Ok(values)
}

/// What a `pre_request` has made of its request, which the environ is made from in gunicorn.
pub(super) struct Changes<'py> {
    sent: Bound<'py, PyAny>,
    wanted: Bound<'py, PyAny>,
}

impl Changes<'_> {
    /// Makes the environ of the request as it came that of the request as the hook wants it.
    ///
    /// # Errors
    /// What Python raises: the hook left something that no environ can be made from.
    pub(super) fn apply(&self, request: &Request, environ: &Bound<'_, PyDict>) -> PyResult<()> {
        let module = environ.py().import(intern!(environ.py(), "ringhorn._server"))?;
        let unix = request.link().listener().unix.is_some();
        module.call_method1("change_environ", (environ, &self.sent, &self.wanted, unix)).map(drop)
    }
}

/// `pre_request` and `post_request`, with what they are given.
pub(super) struct RequestHooks {
    worker: Py<PyAny>,
    request: Py<PyAny>,
    response: Py<PyAny>,
    /// The function that writes an access line, and the logger it is to use, when Python writes the logs.
    log: Option<(Py<PyAny>, Py<PyAny>)>,
    pre: Option<Py<PyAny>>,
    /// The function and its number of parameters: 2, 3 or 4.
    post: Option<(Py<PyAny>, usize)>,
}

impl RequestHooks {
    /// Makes `req` and calls `pre_request`; with what that has changed.
    ///
    /// # Errors
    /// What Python raises while `req` is made.
    pub(super) fn before<'py>(
        &self,
        py: Python<'py>,
        exchange: &mut Exchange,
        input: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyAny>, PyResult<Option<Changes<'py>>>)> {
        let req = self.request(py, &exchange.request, input)?;
        let called = match &self.pre {
            Some(pre) => self.before_request(&req, pre.bind(py)),
            None => Ok(None),
        };
        if req.getattr(intern!(py, "must_close")).is_ok_and(|close| close.is_truthy().unwrap_or(false)) {
            exchange.reply.force_close();
        }
        Ok((req, called))
    }

    /// Writes the access line, when Python writes the logs.
    fn access<'py>(
        &self,
        py: Python<'py>,
        req: &Bound<'py, PyAny>,
        environ: Option<&Bound<'py, PyDict>>,
        exchange: &Exchange,
    ) {
        let Some((access, logger)) = &self.log else { return };
        let taken = clock::monotonic_ns().saturating_sub(exchange.request.received_ns) / 1000;
        let written = || {
            let response = self.response(py, req, exchange)?;
            if exchange.reply.encoder().status().is_empty() {
                // The server's own answer, after the application failed.
                response.setattr("status", exchange.reply.status_code().to_string())?;
            }
            let environ = match environ {
                Some(environ) => environ.clone(),
                None => request_variables(py, &exchange.request)?,
            };
            access.bind(py).call1((logger, response, req, environ, taken))
        };
        if let Err(error) = written() {
            error!("Error in access()\n{}", traceback(py, &error));
        }
    }

    /// Writes the access line of a request that was refused. As in gunicorn no hook hears of it.
    pub(super) fn refused(&self, py: Python<'_>, exchange: &Exchange, input: &Bound<'_, PyAny>) {
        if self.log.is_none() {
            return;
        }
        match self.request(py, &exchange.request, input) {
            Ok(req) => self.access(py, &req, None, exchange),
            Err(error) => error!("Error in access()\n{}", traceback(py, &error)),
        }
    }

    /// Writes the access line and calls `post_request`. `environ` is `None` when the application was not called.
    pub(super) fn after<'py>(
        &self,
        py: Python<'py>,
        req: &Bound<'py, PyAny>,
        environ: Option<Bound<'py, PyDict>>,
        exchange: &Exchange,
    ) {
        self.access(py, req, environ.as_ref(), exchange);
        let Some((post, parameters)) = &self.post else { return };
        let post = post.bind(py);
        let called = || {
            let response = match &environ {
                Some(_) if *parameters > 3 => self.response(py, req, exchange)?,
                _ => py.None().into_bound(py),
            };
            let environ = environ.unwrap_or_else(|| PyDict::new(py));
            match parameters {
                2 => post.call1((&self.worker, req)),
                3 => post.call1((&self.worker, req, environ)),
                _ => post.call1((&self.worker, req, environ, response)),
            }
        };
        if let Err(error) = called() {
            error!("Exception in post_request hook\n{}", traceback(py, &error));
            signals::raised_in_request(py, &error);
        }
    }

    fn before_request<'py>(
        &self,
        req: &Bound<'py, PyAny>,
        pre: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Changes<'py>>> {
        let variables = intern!(req.py(), "_variables");
        let sent = req.call_method0(variables)?;
        pre.call1((&self.worker, req))?;
        let wanted = req.call_method0(variables)?;
        // What was left alone are the same objects, which are equal at a glance.
        Ok(if sent.eq(&wanted)? { None } else { Some(Changes { sent, wanted }) })
    }

    fn request<'py>(
        &self,
        py: Python<'py>,
        request: &Request,
        input: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let headers = PyList::empty(py);
        for (name, value) in request.fields() {
            headers.append((latin1(py, &name.to_ascii_uppercase()), latin1(py, value)))?;
        }
        let peer = match request.link().peer() {
            Peer::Inet { host, port, .. } => {
                let port: u16 = port.parse().unwrap_or(0);
                (&**host, port).into_pyobject(py)?.into_any()
            }
            Peer::Unix => latin1(py, b"").into_any(),
        };
        let minor = u8::from(request.version() == Version::Http11);
        let scheme = if request.head().scheme_override == Some(Scheme::Https) { "https" } else { "http" };
        let arguments = PyTuple::new(
            py,
            [
                self.worker.bind(py).clone(),
                latin1(py, request.method()).into_any(),
                latin1(py, request.target()).into_any(),
                latin1(py, request.path()).into_any(),
                latin1(py, request.query()).into_any(),
                (1_u8, minor).into_pyobject(py)?.into_any(),
                headers.into_any(),
                scheme.into_pyobject(py)?.into_any(),
                peer,
                input.clone(),
                request.head().keep_alive.into_pyobject(py)?.to_owned().into_any(),
                proxy_information(py, request)?,
                request.number.into_pyobject(py)?.into_any(),
            ],
        )?;
        self.request.bind(py).call1(arguments)
    }

    fn response<'py>(
        &self,
        py: Python<'py>,
        req: &Bound<'py, PyAny>,
        exchange: &Exchange,
    ) -> PyResult<Bound<'py, PyAny>> {
        let encoder = exchange.reply.encoder();
        let headers = PyList::empty(py);
        if let Some(length) = encoder.content_length() {
            headers.append(("Content-Length", length.to_string()))?;
        }
        for (name, value) in encoder.fields() {
            headers.append((latin1(py, name), latin1(py, value)))?;
        }
        let status = match encoder.status() {
            [] => py.None().into_bound(py),
            status => latin1(py, status).into_any(),
        };
        let code = if encoder.status_code() == 0 { None } else { Some(encoder.status_code()) };
        self.response.bind(py).call1((
            req,
            status,
            code,
            headers,
            encoder.body_bytes(),
            encoder.content_length(),
            encoder.head_sent(),
            encoder.is_chunked(),
            !encoder.keep_alive(),
        ))
    }
}
