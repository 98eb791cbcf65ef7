//! Finds the application: `module`, `module:attribute`, `module:factory(literals)`.

use std::path::Path;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::wsgi::traceback;
use crate::error::{Exit, StartError};

/// Imports the application that `spec` names (gunicorn's `APP_MODULE`).
///
/// # Errors
/// [`Exit::AppLoad`] when the name does not lead to an application, [`Exit::WorkerBoot`] when its own code
/// failed, with the Python traceback.
pub(super) fn load(py: Python<'_>, spec: &str) -> Result<Py<PyAny>, StartError> {
    let fail =
        |exit, what: String| StartError::new(exit, format!("cannot load application '{spec}': {what}"));
    let (module, object) = spec.split_once(':').unwrap_or((spec, "application"));
    let imported = py.import(module).map_err(|error| {
        let hint = if module.contains('/') || module.ends_with(".py") {
            let name = module.trim_end_matches(".py").replace('/', ".");
            format!("give the module, not the file; did you mean '{name}:{object}'?")
        } else {
            "see the traceback; --chdir and --pythonpath choose where modules are looked for".into()
        };
        let what = format!("importing '{module}' failed: {}", error.value(py));
        fail(Exit::WorkerBoot, what).hint(hint).detail(traceback(py, &error))
    })?;
    let call = Expression::parse(py, object).map_err(|what| {
        fail(Exit::AppLoad, what).hint("write it as module:name or module:factory('literal', key=1)")
    })?;
    let found = imported.getattr_opt(call.name.as_str()).ok().flatten().ok_or_else(|| {
        fail(Exit::AppLoad, format!("module '{module}' has no attribute '{}'", call.name))
            .hint(suggestion(&imported, &call.name))
    })?;
    let application = match call.arguments {
        None => found,
        Some((positional, keywords)) => found.call(positional, Some(&keywords)).map_err(|error| {
            // A call that never began has no traceback: the arguments do not fit.
            if error.traceback(py).is_none() && error.is_instance_of::<PyTypeError>(py) {
                fail(Exit::AppLoad, error.value(py).to_string()).hint("the arguments do not fit the factory")
            } else {
                fail(Exit::WorkerBoot, format!("{object} failed: {}", error.value(py)))
                    .detail(traceback(py, &error))
            }
        })?,
    };
    if application.is_none() {
        return Err(fail(Exit::AppLoad, "it is None".into()).hint("does the factory return the application?"));
    }
    if !application.is_callable() {
        let what = format!("a {} cannot be called", application.get_type());
        return Err(fail(Exit::AppLoad, what).hint("a WSGI application is a callable"));
    }
    Ok(application.unbind())
}

/// Has a program load its application: `load` is called without arguments.
///
/// # Errors
/// As those of [`load`]; [`Exit::AppLoad`] for an exception named `AppImportError`, as in gunicorn.
pub(super) fn load_from(
    py: Python<'_>,
    load: &Bound<'_, PyAny>,
    name: &str,
) -> Result<Py<PyAny>, StartError> {
    let fail =
        |exit, what: String| StartError::new(exit, format!("cannot load application '{name}': {what}"));
    let application = load.call0().map_err(|error| {
        let named = error.get_type(py).name().is_ok_and(|name| name == "AppImportError");
        let exit = if named { Exit::AppLoad } else { Exit::WorkerBoot };
        fail(exit, error.value(py).to_string()).detail(traceback(py, &error))
    })?;
    if !application.is_callable() {
        return Err(fail(Exit::AppLoad, format!("a {} cannot be called", application.get_type())));
    }
    Ok(application.unbind())
}

/// `name` or `name(literals)`.
struct Expression<'py> {
    name: String,
    arguments: Option<(Bound<'py, PyTuple>, Bound<'py, PyDict>)>,
}

impl<'py> Expression<'py> {
    /// Parses with Python's own grammar; only literals are evaluated.
    fn parse(py: Python<'py>, text: &str) -> Result<Self, String> {
        let simple = |error: PyErr| format!("'{text}': {}", error.value(py));
        let ast = py.import("ast").map_err(simple)?;
        let options = PyDict::new(py);
        options.set_item("mode", "eval").map_err(simple)?;
        let not_simple = || format!("'{text}' is neither a name nor a call of one");
        let tree = ast
            .call_method("parse", (text,), Some(&options))
            .and_then(|tree| tree.getattr("body"))
            .map_err(|_| not_simple())?;
        let is = |node: &Bound<'py, PyAny>, kind: &str| {
            ast.getattr(kind).and_then(|kind| node.is_instance(&kind)).unwrap_or(false)
        };
        let name = |node: &Bound<'py, PyAny>| -> Option<String> {
            if is(node, "Name") { node.getattr("id").ok()?.extract().ok() } else { None }
        };
        if let Some(name) = name(&tree) {
            return Ok(Self { name, arguments: None });
        }
        if !is(&tree, "Call") {
            return Err(not_simple());
        }
        let literal = |node: &Bound<'py, PyAny>| {
            ast.call_method1("literal_eval", (node,))
                .map_err(|_| format!("'{text}': the arguments of a factory must be literals"))
        };
        let name = tree.getattr("func").ok().and_then(|node| name(&node)).ok_or_else(not_simple)?;
        let positional = PyList::empty(py);
        for node in tree.getattr("args").and_then(|args| args.try_iter()).map_err(simple)? {
            positional.append(literal(&node.map_err(simple)?)?).map_err(simple)?;
        }
        let keywords = PyDict::new(py);
        for node in tree.getattr("keywords").and_then(|args| args.try_iter()).map_err(simple)? {
            let node = node.map_err(simple)?;
            let key = node.getattr("arg").map_err(simple)?;
            if key.is_none() {
                return Err(format!("'{text}': ** has no place here"));
            }
            keywords.set_item(key, literal(&node.getattr("value").map_err(simple)?)?).map_err(simple)?;
        }
        Ok(Self { name, arguments: Some((positional.to_tuple(), keywords)) })
    }
}

/// What the module has instead.
fn suggestion(module: &Bound<'_, PyModule>, wanted: &str) -> String {
    let candidates: Vec<&str> = ["application", "app", "wsgi_app", "create_app", "make_app"]
        .into_iter()
        .filter(|name| *name != wanted && matches!(module.getattr_opt(*name), Ok(Some(_))))
        .collect();
    match candidates.first() {
        Some(name) => format!("it has '{name}'; did you mean that?"),
        None => "name a callable of the module after the colon".into(),
    }
}

/// Puts `directory` first on sys.path.
///
/// # Errors
/// What Python raises.
pub(super) fn prepend_path(py: Python<'_>, directory: &Path) -> PyResult<()> {
    let path = py.import("sys")?.getattr("path")?;
    // As text: what sys.path is made of.
    let directory = directory.as_os_str();
    let present: bool = path.call_method1("__contains__", (directory,))?.extract()?;
    if present {
        path.call_method1("remove", (directory,))?;
    }
    path.call_method1("insert", (0, directory))?;
    Ok(())
}
