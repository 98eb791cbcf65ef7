//! Values as the sources give them, before they have a type, and where each came from.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A value of a setting, from any source.
#[derive(Clone, Debug)]
pub enum Value {
    /// Not set, or Python's `None`. For every setting it means the default.
    None,
    /// Python's `True` and `False`, or a switch on the command line.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction; only seconds may have one.
    Float(f64),
    /// Text. Everything on a command line is text first.
    Str(String),
    /// A list of values.
    List(Vec<Value>),
    /// A mapping with text keys, in the order given.
    Dict(Vec<(String, Value)>),
    /// Something only the config file's language knows: a function, a class, an SSL context.
    Object(Arc<dyn Foreign>),
}

/// An object of the config file's language. `app::python` implements it for Python objects.
pub trait Foreign: fmt::Debug + Send + Sync {
    /// How the object is shown to people, for example `<on_starting()>`.
    fn describe(&self) -> String;

    /// Number of positional arguments it takes when called; `None` when it cannot be called or
    /// takes any number.
    fn arity(&self) -> Option<usize>;

    /// Whether it can be called at all.
    fn is_callable(&self) -> bool {
        true
    }

    /// For the implementor, to get its own type back.
    fn as_any(&self) -> &dyn Any;
}

impl Value {
    /// Text, from anything that becomes a `String`.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Str(text.into())
    }

    /// The kind of value in words, for messages.
    #[must_use]
    pub const fn noun(&self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Bool(_) => "a truth value",
            Self::Int(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Str(_) => "text",
            Self::List(_) => "a list",
            Self::Dict(_) => "a mapping",
            Self::Object(_) => "an object",
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text)
    }
}

impl From<bool> for Value {
    fn from(on: bool) -> Self {
        Self::Bool(on)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

/// Two objects are equal when they are one object.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a == b,
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::List(a), Self::List(b)) => a == b,
            (Self::Dict(a), Self::Dict(b)) => a == b,
            (Self::Object(a), Self::Object(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// As Python would write it, because that is the language of the config file.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Str(text) => quote(f, text),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{item}")?;
                }
                f.write_str("]")
            }
            Self::Dict(items) => {
                f.write_str("{")?;
                for (index, (key, item)) in items.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    quote(f, key)?;
                    write!(f, ": {item}")?;
                }
                f.write_str("}")
            }
            Self::Object(object) => f.write_str(&object.describe()),
        }
    }
}

/// Quotes as Python does: single quotes, unless the text has one and no double quote.
fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    write!(f, "{mark}")?;
    for c in text.chars() {
        match c {
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            '\\' => f.write_str("\\\\")?,
            c if c == mark => write!(f, "\\{c}")?,
            c if c.is_ascii_control() => write!(f, "\\x{:02x}", c as u32)?,
            c => write!(f, "{c}")?,
        }
    }
    write!(f, "{mark}")
}

/// Where a value came from. Later variants win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// An environment variable that stands behind a default, such as `PORT`.
    Environment(&'static str),
    /// The program that started the server from its own code.
    Program,
    /// The config file, by its name as the user wrote it.
    File(String),
    /// A variable with command-line arguments in it, and the option.
    Arguments(Variable, String),
    /// The option on the command line.
    CommandLine(String),
}

/// The environment variables that hold command-line arguments; the later one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variable {
    /// `GUNICORN_CMD_ARGS`.
    Gunicorn,
    /// `RINGHORN_CMD_ARGS`.
    Ringhorn,
}

impl Variable {
    /// The variable's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gunicorn => "GUNICORN_CMD_ARGS",
            Self::Ringhorn => "RINGHORN_CMD_ARGS",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(name) => write!(f, "{name} in the environment"),
            Self::Program => f.write_str("given by the program"),
            Self::File(path) => write!(f, "{path}"),
            Self::Arguments(variable, option) => write!(f, "{option} in {}", variable.name()),
            Self::CommandLine(option) => write!(f, "{option} on the command line"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_print_as_python_writes_them() {
        let value = Value::Dict(vec![
            ("a".into(), Value::List(vec![Value::Int(1), Value::Bool(true), Value::None])),
            ("it's".into(), Value::text("line\nend \\ \"")),
        ]);
        assert_eq!(value.to_string(), r#"{'a': [1, True, None], "it's": 'line\nend \\ "'}"#);
    }

    #[test]
    fn the_order_of_sources_is_their_precedence() {
        let order = [
            Source::Default,
            Source::Environment("PORT"),
            Source::Program,
            Source::File("gunicorn.conf.py".into()),
            Source::Arguments(Variable::Gunicorn, "--bind".into()),
            Source::Arguments(Variable::Ringhorn, "--bind".into()),
            Source::CommandLine("--bind".into()),
        ];
        assert!(order.is_sorted());
    }
}
