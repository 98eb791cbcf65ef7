//! Config files: Python modules whose names are settings (`gunicorn.conf.py`, `ringhorn.conf.py`).

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PyModule, PySet, PyString, PyTuple, PyType,
};

use super::loader;
use super::wsgi::traceback;
use crate::config::settings::{self, Kind, SETTINGS};
use crate::config::{ConfigFile, Foreign, Location, Value};
use crate::error::{Exit, StartError};

/// Lists and mappings in one another are looked into this deep; what lies deeper stays an object. A list may
/// contain itself.
const DEPTH_MAX: usize = 16;

/// Runs config files in the interpreter.
pub(super) struct Script<'py>(pub(super) Python<'py>);

impl ConfigFile for Script<'_> {
    fn run(&mut self, location: &Location) -> Result<Vec<(String, Value)>, StartError> {
        let py = self.0;
        let shown = match location {
            Location::Path(path) => path.display().to_string(),
            Location::Module(module) => format!("python:{module}"),
        };
        let failed = |error: PyErr| {
            let what = format!("cannot read config file {shown}: {}", summary(py, &error));
            StartError::new(Exit::Start, what).detail(traceback(py, &error))
        };
        // The file may import what lies beside the application.
        if let Ok(here) = std::env::current_dir() {
            loader::prepend_path(py, &here).map_err(failed)?;
        }
        let module = match location {
            Location::Module(name) => py.import(name.as_str()).map_err(failed)?,
            Location::Path(path) if !path.exists() => {
                return Err(StartError::new(Exit::Start, format!("config file {shown} does not exist"))
                    .hint(
                        "--config takes PATH, file:PATH or python:MODULE, from the directory of the start",
                    ));
            }
            Location::Path(path) => execute(py, path).map_err(failed)?,
        };
        let mut values = Vec::new();
        for (name, value) in module.dict() {
            let Ok(name) = name.extract::<String>() else { continue };
            if name.starts_with('_') {
                continue;
            }
            match settings::index_of(&name) {
                // Files that import `io` do not mean the setting, which gunicorn does not have.
                Some(index)
                    if value.is_instance_of::<PyModule>()
                        && !matches!(SETTINGS[index].kind, Kind::Hook(_)) => {}
                Some(index) => {
                    let value = setting(SETTINGS[index].kind, &value).map_err(|error| {
                        let what = format!("invalid {name}: {}", error.value(py));
                        StartError::new(Exit::Start, what)
                            .from(format!("{name}, in {shown}"))
                            .hint("name a function as package.module.function")
                            .detail(traceback(py, &error))
                    })?;
                    values.push((name, value));
                }
                // The caller looks whether this is a slip of the pen; a module is none.
                None if value.is_instance_of::<PyModule>() => {}
                None => values.push((name, Value::None)),
            }
        }
        Ok(values)
    }
}

/// Runs the file as module `__config__`, which can be imported under that name afterwards (as in gunicorn).
fn execute<'py>(py: Python<'py>, path: &Path) -> PyResult<Bound<'py, PyModule>> {
    let util = py.import("importlib.util")?;
    let name = "__config__";
    let options = PyDict::new(py);
    if !path.extension().is_some_and(|extension| extension == "py" || extension == "pyc") {
        // By its name alone importlib would not take it for Python.
        let loader = py.import("importlib.machinery")?.getattr("SourceFileLoader")?;
        options.set_item("loader", loader.call1((name, path.as_os_str()))?)?;
    }
    let spec = util.call_method("spec_from_file_location", (name, path.as_os_str()), Some(&options))?;
    if spec.is_none() {
        return Err(PyRuntimeError::new_err("it is not Python"));
    }
    let module = util.call_method1("module_from_spec", (&spec,))?;
    py.import("sys")?.getattr("modules")?.set_item(name, &module)?;
    spec.getattr("loader")?.call_method1("exec_module", (&module,))?;
    Ok(module.cast_into()?)
}

fn summary(py: Python<'_>, error: &PyErr) -> String {
    let kind = error.get_type(py).name().map_or_else(|_| "error".to_owned(), |name| name.to_string());
    match error.value(py).str() {
        Ok(text) if !text.to_string_lossy().is_empty() => format!("{kind}: {}", text.to_string_lossy()),
        _ => kind,
    }
}

/// A Python value as the value of a setting. A hook that is named by a text is imported.
///
/// # Errors
/// The import of a hook fails.
pub(super) fn setting(kind: Kind, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    match (kind, value.cast::<PyString>()) {
        (Kind::Hook(_), Ok(name)) => Ok(object(&imported(&name.to_string_lossy(), value.py())?)),
        _ => Ok(converted(value, 0)),
    }
}

fn imported<'py>(name: &str, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
    let (module, attribute) = name
        .rsplit_once('.')
        .ok_or_else(|| PyRuntimeError::new_err(format!("'{name}' is not of the form module.function")))?;
    py.import(module)?.getattr(attribute)
}

fn converted(value: &Bound<'_, PyAny>, depth: usize) -> Value {
    let list = |items: Vec<Bound<'_, PyAny>>| {
        Value::List(items.iter().map(|item| converted(item, depth + 1)).collect())
    };
    if value.is_none() {
        Value::None
    } else if let Ok(on) = value.cast::<PyBool>() {
        Value::Bool(on.is_true())
    } else if value.is_instance_of::<PyInt>() {
        value.extract().map_or_else(|_| object(value), Value::Int)
    } else if let Ok(number) = value.cast::<PyFloat>() {
        Value::Float(number.value())
    } else if let Ok(text) = value.cast::<PyString>() {
        Value::text(text.to_string_lossy())
    } else if depth == DEPTH_MAX {
        object(value)
    } else if let Ok(items) = value.cast::<PyList>() {
        list(items.iter().collect())
    } else if let Ok(items) = value.cast::<PyTuple>() {
        list(items.iter().collect())
    } else if let Ok(items) = value.cast::<PySet>() {
        list(items.iter().collect())
    } else if let Ok(items) = value.cast::<PyFrozenSet>() {
        list(items.iter().collect())
    } else if let Ok(items) = value.cast::<PyDict>() {
        let pairs: Option<Vec<_>> = items
            .iter()
            .map(|(key, item)| Some((key.extract::<String>().ok()?, converted(&item, depth + 1))))
            .collect();
        pairs.map_or_else(|| object(value), Value::Dict)
    } else {
        object(value)
    }
}

/// The value of a setting as a Python object; the very object where the config file gave one.
///
/// # Errors
/// Out of memory.
pub(super) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::None => Ok(py.None().into_bound(py)),
        Value::Bool(on) => on.into_bound_py_any(py),
        Value::Int(number) => number.into_bound_py_any(py),
        Value::Float(number) => number.into_bound_py_any(py),
        Value::Str(text) => text.into_bound_py_any(py),
        Value::List(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(to_python(py, item)?)?;
            }
            Ok(list.into_any())
        }
        Value::Dict(items) => {
            let dict = PyDict::new(py);
            for (key, item) in items {
                dict.set_item(key, to_python(py, item)?)?;
            }
            Ok(dict.into_any())
        }
        Value::Object(object) => Ok(python_object(py, object.as_ref())),
    }
}

/// The Python object behind a foreign one; `None` for one that is not ours.
fn python_object<'py>(py: Python<'py>, object: &dyn Foreign) -> Bound<'py, PyAny> {
    object
        .as_any()
        .downcast_ref::<Object>()
        .map_or_else(|| py.None().into_bound(py), |object| object.object.bind(py).clone())
}

/// A Python object that is the value of a setting.
#[derive(Debug)]
struct Object {
    object: Py<PyAny>,
    shown: String,
    callable: bool,
    arity: Option<usize>,
}

fn object(value: &Bound<'_, PyAny>) -> Value {
    let named = |attribute: &str| value.getattr(attribute).and_then(|name| name.extract::<String>());
    let shown = match (named("__module__"), named("__qualname__")) {
        // A class by the name under which other settings would name it.
        (Ok(module), Ok(name)) if value.is_instance_of::<PyType>() => format!("{module}.{name}"),
        (_, Ok(name)) if value.is_callable() => format!("<{name}()>"),
        _ => value.repr().map_or_else(|_| "<object>".to_owned(), |text| text.to_string()),
    };
    Value::Object(Arc::new(Object {
        callable: value.is_callable(),
        arity: arity(value).unwrap_or(None),
        object: value.clone().unbind(),
        shown,
    }))
}

/// The number of positional parameters; `None` when any number will do.
fn arity(callable: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    let inspect = callable.py().import("inspect")?;
    let signature = inspect.call_method1("signature", (callable,))?;
    let mut count = 0;
    for parameter in signature.getattr("parameters")?.call_method0("values")?.try_iter()? {
        match parameter?.getattr("kind")?.getattr("name")?.extract::<String>()?.as_str() {
            "VAR_POSITIONAL" => return Ok(None),
            "POSITIONAL_ONLY" | "POSITIONAL_OR_KEYWORD" => count += 1,
            _ => {}
        }
    }
    Ok(Some(count))
}

impl Foreign for Object {
    fn describe(&self) -> String {
        self.shown.clone()
    }

    fn arity(&self) -> Option<usize> {
        self.arity
    }

    fn is_callable(&self) -> bool {
        self.callable
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
