//! Checks of single values: whatever a source gave becomes a value of the setting's kind, or a
//! reason why not. Checks that need more than one setting are in [`super`].

use super::settings::{Kind, Setting};
use super::value::Value;

/// Brings `value` into the form of the setting's kind.
///
/// `None` passes for every kind and means the default, because config files made from gunicorn's
/// template set most names to `None`.
///
/// # Errors
/// A phrase that follows "is not valid: ".
pub(super) fn check(setting: &Setting, value: Value) -> Result<Value, String> {
    if value == Value::None {
        return Ok(value);
    }
    match setting.kind {
        Kind::Text | Kind::Path | Kind::Directory => match value {
            Value::Str(text) => Ok(Value::text(text.trim())),
            other => Err(wanted("text", &other)),
        },
        Kind::Count(least) => match integer(&value, radix_python)? {
            number if number < least => Err(format!("it must be {least} or more")),
            number => Ok(Value::Int(number)),
        },
        Kind::Mode => match integer(&value, radix_shell)? {
            number if !(0..=0o7777).contains(&number) => Err("it must be mode bits such as 0022".to_owned()),
            number => Ok(Value::Int(number)),
        },
        Kind::Seconds => seconds(&value),
        Kind::Bytes => bytes(&value),
        Kind::Switch => switch(&value).map(Value::Bool),
        Kind::List => match value {
            // gunicorn takes a lone text for a list of one.
            Value::Str(text) => Ok(Value::List(vec![Value::text(text.trim())])),
            other => texts(other),
        },
        Kind::Commas => match value {
            Value::Str(text) => Ok(split_commas(&text)),
            other => texts(other),
        },
        Kind::Networks => {
            let list = match value {
                Value::Str(text) => split_commas(&text),
                other => texts(other)?,
            };
            super::network::Trusted::from_value(&list)?;
            Ok(list)
        }
        Kind::Choice(words) => match value {
            Value::Str(text) => choice(&text, words),
            other => Err(wanted("text", &other)),
        },
        Kind::ProxyMode => proxy_mode(&value),
        Kind::Dict => match value {
            Value::Dict(items) => Ok(Value::Dict(items)),
            other => Err(wanted("a mapping", &other)),
        },
        Kind::Account => {
            let value = match value {
                Value::Str(text) if text.trim().is_empty() => return Err("it is empty".to_owned()),
                Value::Str(text) => text.trim().parse().map_or_else(|_| Value::text(text.trim()), Value::Int),
                other => other,
            };
            match value {
                Value::Int(number) if u32::try_from(number).is_err() => {
                    Err("it must be a name or a number from 0 to 4294967295".to_owned())
                }
                Value::Int(_) | Value::Str(_) => Ok(value),
                other => Err(wanted("a name or a number", &other)),
            }
        }
        Kind::Hook(arities) => match &value {
            Value::Object(object) if !object.is_callable() => Err(wanted("a function", &value)),
            Value::Object(function) => match function.arity() {
                Some(arity) if !arities.contains(&arity) => {
                    let wanted: Vec<_> = arities.iter().map(ToString::to_string).collect();
                    Err(format!("it takes {arity} arguments, and must take {}", wanted.join(" or ")))
                }
                _ => Ok(value),
            },
            // A dotted name, which is imported when the hook is first needed.
            Value::Str(_) => Ok(value),
            other => Err(wanted("a function", other)),
        },
        Kind::Class => match value {
            Value::Str(text) => Ok(Value::text(text.trim())),
            Value::Object(_) => Ok(value),
            other => Err(wanted("a class or the name of one", &other)),
        },
        Kind::Any => Ok(value),
    }
}

fn wanted(what: &str, got: &Value) -> String {
    format!("it must be {what} and is {}", got.noun())
}

/// A whole number, from a number, a truth value (as in Python) or text.
fn integer(value: &Value, radix: fn(&str) -> Option<(u32, &str)>) -> Result<i64, String> {
    match value {
        Value::Int(number) => Ok(*number),
        Value::Bool(on) => Ok(i64::from(*on)),
        Value::Str(text) => {
            parse_integer(text.trim(), radix).ok_or_else(|| "it must be a whole number".to_owned())
        }
        other => Err(wanted("a whole number", other)),
    }
}

/// The number in `text`, which may have a sign, a prefix for its base, and underscores.
fn parse_integer(text: &str, radix: fn(&str) -> Option<(u32, &str)>) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let (base, digits) = radix(digits)?;
    // A second sign would pass `from_str_radix`.
    if digits.starts_with(['+', '-', '_']) || digits.ends_with('_') {
        return None;
    }
    let number = i64::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(sign * number)
}

/// The base of a number as `int(text, 0)` of Python sees it: a bare leading 0 is an error there.
fn radix_python(digits: &str) -> Option<(u32, &str)> {
    if let Some(prefixed) = prefixed(digits) {
        return Some(prefixed);
    }
    let leading_zero = digits.len() > 1 && digits.starts_with('0') && digits.bytes().any(|b| b != b'0');
    (!leading_zero).then_some((10, digits))
}

/// The base of mode bits: as in Python, and a leading 0 means octal as in a shell.
fn radix_shell(digits: &str) -> Option<(u32, &str)> {
    prefixed(digits).or_else(|| match digits.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => Some((8, octal)),
        _ => Some((10, digits)),
    })
}

fn prefixed(digits: &str) -> Option<(u32, &str)> {
    let base = match digits.get(..2)? {
        "0x" | "0X" => 16,
        "0o" | "0O" => 8,
        "0b" | "0B" => 2,
        _ => return None,
    };
    Some((base, &digits[2..]))
}

/// Longest time that a setting can ask for. It keeps sums of deadlines far from overflow.
const SECONDS_MAX: f64 = 366.0 * 86_400.0;

fn seconds(value: &Value) -> Result<Value, String> {
    let number = match value {
        #[expect(clippy::cast_precision_loss, reason = "far above the limit when it loses anything")]
        Value::Int(number) => *number as f64,
        Value::Float(number) => *number,
        Value::Bool(on) => f64::from(u8::from(*on)),
        Value::Str(text) => match parse_integer(text.trim(), radix_python) {
            Some(number) => return seconds(&Value::Int(number)),
            None => text.trim().parse().map_err(|_| "it must be a number of seconds".to_owned())?,
        },
        other => return Err(wanted("a number of seconds", other)),
    };
    if !(0.0..=SECONDS_MAX).contains(&number) {
        return Err("it must be a number of seconds from 0 to a year".to_owned());
    }
    if number.fract() == 0.0 {
        #[expect(clippy::cast_possible_truncation, reason = "whole and below SECONDS_MAX")]
        return Ok(Value::Int(number as i64));
    }
    Ok(Value::Float(number))
}

fn bytes(value: &Value) -> Result<Value, String> {
    let reason = || "it must be a number of bytes, such as 65536, 64k or 1m".to_owned();
    let number = match value {
        Value::Str(text) => {
            let text = text.trim().to_ascii_lowercase();
            let (digits, shift) = match text.as_bytes().last() {
                Some(b'k') => (&text[..text.len() - 1], 10),
                Some(b'm') => (&text[..text.len() - 1], 20),
                Some(b'g') => (&text[..text.len() - 1], 30),
                _ => (text.as_str(), 0),
            };
            let number = parse_integer(digits.trim(), radix_python).ok_or_else(reason)?;
            number.checked_mul(1 << shift).ok_or_else(reason)?
        }
        other => integer(other, radix_python)?,
    };
    if number < 0 { Err("it must be 0 or more".to_owned()) } else { Ok(Value::Int(number)) }
}

fn switch(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(on) => Ok(*on),
        Value::Str(text) if text.trim().eq_ignore_ascii_case("true") => Ok(true),
        Value::Str(text) if text.trim().eq_ignore_ascii_case("false") => Ok(false),
        Value::Str(_) => Err("it must be true or false".to_owned()),
        other => Err(wanted("True or False", other)),
    }
}

fn choice(text: &str, words: &[&str]) -> Result<Value, String> {
    let word = text.trim().to_ascii_lowercase();
    if words.contains(&word.as_str()) {
        Ok(Value::Str(word))
    } else {
        Err(format!("it must be one of {}", words.join(", ")))
    }
}

fn proxy_mode(value: &Value) -> Result<Value, String> {
    let mode = match value {
        Value::Bool(true) | Value::Int(1) => "auto",
        Value::Bool(false) | Value::Int(0) => "off",
        Value::Str(text) => match text.trim().to_ascii_lowercase().as_str() {
            "auto" | "true" | "1" => "auto",
            "off" | "false" | "0" | "none" | "" => "off",
            "v1" => "v1",
            "v2" => "v2",
            _ => return Err("it must be off, v1, v2 or auto".to_owned()),
        },
        other => return Err(wanted("off, v1, v2 or auto", other)),
    };
    Ok(Value::text(mode))
}

fn split_commas(text: &str) -> Value {
    Value::List(
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(Value::text).collect::<Vec<_>>(),
    )
}

fn texts(value: Value) -> Result<Value, String> {
    let Value::List(items) = value else { return Err(wanted("a list", &value)) };
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Value::Str(text) => out.push(Value::text(text.trim())),
            other => return Err(format!("{other} in the list must be text")),
        }
    }
    Ok(Value::List(out))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::any::Any;
    use std::sync::Arc;

    use super::*;
    use crate::config::settings::{SETTINGS, index_of};

    fn checked(name: &str, value: Value) -> Result<Value, String> {
        check(&SETTINGS[index_of(name).unwrap()], value)
    }

    fn number(name: &str, text: &str) -> Option<i64> {
        match checked(name, Value::text(text)) {
            Ok(Value::Int(number)) => Some(number),
            _ => None,
        }
    }

    /// Python's `int(text, 0)` is what gunicorn reads numbers with.
    #[test]
    fn whole_numbers_are_read_as_python_reads_them() {
        for (text, expected) in [
            ("5", Some(5)),
            (" 5 ", Some(5)),
            ("0x10", Some(16)),
            ("0b11", Some(3)),
            ("1_000", Some(1000)),
            ("+7", Some(7)),
            ("00", Some(0)),
            ("010", None),
            ("-1", None),
            ("+-1", None),
            ("0x-1", None),
            ("1_", None),
            ("1.5", None),
            ("", None),
            ("four", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(number("max_requests", text), expected, "{text:?}");
        }
        assert_eq!(checked("max_requests", Value::Bool(true)), Ok(Value::Int(1)));
    }

    #[test]
    fn zero_workers_are_no_workers() {
        assert_eq!(checked("workers", Value::Int(0)).unwrap_err(), "it must be 1 or more");
    }

    #[test]
    fn umask_is_octal_with_a_leading_zero() {
        for (text, expected) in
            [("0022", 0o22), ("022", 0o22), ("18", 18), ("0x12", 18), ("0o22", 18), ("0", 0)]
        {
            assert_eq!(number("umask", text), Some(expected), "{text:?}");
        }
        assert_eq!(number("umask", "0999"), None);
        assert_eq!(number("umask", "0x10000"), None);
    }

    #[test]
    fn seconds_may_have_a_fraction_and_an_end() {
        assert_eq!(checked("timeout", Value::text("30")), Ok(Value::Int(30)));
        assert_eq!(checked("timeout", Value::text("0.5")), Ok(Value::Float(0.5)));
        assert_eq!(checked("timeout", Value::Float(2.0)), Ok(Value::Int(2)));
        for bad in ["-1", "nan", "inf", "1e300", "soon"] {
            assert!(checked("timeout", Value::text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(number("body_buffer", "64k"), Some(65536));
        assert_eq!(number("body_buffer", "2M"), Some(2 << 20));
        assert_eq!(number("body_buffer", "1g"), Some(1 << 30));
        assert_eq!(number("body_buffer", "9999999999g"), None);
        assert_eq!(number("body_buffer", "k"), None);
        assert_eq!(number("body_buffer", "-1k"), None);
    }

    #[test]
    fn lists_are_made_of_a_lone_text_or_of_commas() {
        let list = |items: &[&str]| Ok(Value::List(items.iter().map(|item| Value::text(*item)).collect()));
        assert_eq!(checked("bind", Value::text("a:1,b:2")), list(&["a:1,b:2"]));
        assert_eq!(checked("pythonpath", Value::text("/a, /b,")), list(&["/a", "/b"]));
        assert_eq!(checked("forwarded_allow_ips", Value::text("10.0.0.0/8,*")), list(&["10.0.0.0/8", "*"]));
        assert!(checked("bind", Value::List(vec![Value::Int(8000)])).is_err());
        assert!(checked("forwarded_allow_ips", Value::text("10.0.0.1/8")).is_err());
    }

    #[test]
    fn proxy_protocol_takes_words_and_truth_values() {
        assert_eq!(checked("proxy_protocol", Value::Bool(true)), Ok(Value::text("auto")));
        assert_eq!(checked("proxy_protocol", Value::text("V2")), Ok(Value::text("v2")));
        assert_eq!(checked("proxy_protocol", Value::text("0")), Ok(Value::text("off")));
        assert!(checked("proxy_protocol", Value::text("app:app")).is_err());
    }

    #[derive(Debug)]
    struct Function(usize);

    impl crate::config::Foreign for Function {
        fn describe(&self) -> String {
            "<function()>".to_owned()
        }
        fn arity(&self) -> Option<usize> {
            Some(self.0)
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    /// A hook with the wrong signature would fail at the first request, in production.
    #[test]
    fn hooks_are_checked_for_their_number_of_arguments() {
        let hook = |arity| Value::Object(Arc::new(Function(arity)));
        assert!(checked("post_request", hook(2)).is_ok());
        assert!(checked("post_request", hook(4)).is_ok());
        assert_eq!(
            checked("post_request", hook(1)).unwrap_err(),
            "it takes 1 arguments, and must take 2 or 3 or 4"
        );
        assert!(checked("when_ready", Value::text("hooks.when_ready")).is_ok());
        assert!(checked("when_ready", Value::Int(1)).is_err());
    }

    proptest::proptest! {
        /// Whatever is typed, there is an answer, and a value that passed once passes again.
        #[test]
        fn any_text_is_a_value_or_an_error(text in ".{0,16}") {
            for setting in SETTINGS {
                if let Ok(value) = check(setting, Value::text(&*text)) {
                    proptest::prop_assert_eq!(check(setting, value.clone()), Ok(value), "{}", setting.name);
                }
            }
            let _ = crate::config::Bind::parse(&text);
        }
    }

    /// Found by the generator above: the text was taken, and its own value refused.
    #[test]
    fn a_negative_account_is_refused_as_text_and_as_number() {
        let user = SETTINGS.iter().find(|setting| setting.name == "user").unwrap();
        for value in [Value::text("-1"), Value::Int(-1), Value::text("4294967296")] {
            assert!(check(user, value).is_err());
        }
        assert_eq!(check(user, Value::text(" 33 ")), Ok(Value::Int(33)));
    }

    /// Config files made from gunicorn's template set most names to `None`.
    #[test]
    fn none_passes_for_every_setting() {
        for setting in SETTINGS {
            assert_eq!(check(setting, Value::None), Ok(Value::None));
        }
    }
}
