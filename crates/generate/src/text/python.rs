//! What chat templates expect of Python: `tojson`, `raise_exception`, methods and tests; not a Python.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// Deeper values than this are refused: they would exhaust the stack.
const MAX_DEPTH: usize = 128;

/// Installs Python's flavour of filters, tests, functions and methods.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_sequence);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match f64::try_from(value.clone()) {
        Ok(x) if value.is_number() && !value.is_integer() && x.is_finite() => {
            out.write_str(&float(x)).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Strings and dictionaries are sequences and iterables too; so is what is undefined.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Undefined
    )
}

/// Methods of Python's strings, lists and dictionaries: minijinja-contrib's, and those it lacks.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args) {
        Err(error) if error.kind() == ErrorKind::UnknownMethod => {}
        done => return done,
    }
    let unknown = || Error::from(ErrorKind::UnknownMethod);
    if value.kind() == ValueKind::Map && name == "copy" && args.is_empty() {
        return Ok(value.clone());
    }
    if let (ValueKind::Seq, "index", [wanted]) = (value.kind(), name, args) {
        let at = value.try_iter()?.position(|item| item == *wanted);
        return at.map(Value::from).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "not in the list"));
    }
    let text = value.as_str().ok_or_else(unknown)?;
    let strings = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from)));
    Ok(match (name, args.first().and_then(Value::as_str)) {
        ("removeprefix", Some(prefix)) => text.strip_prefix(prefix).unwrap_or(text).into(),
        ("removesuffix", Some(suffix)) => text.strip_suffix(suffix).unwrap_or(text).into(),
        ("partition", Some(mark)) => match text.split_once(mark) {
            Some((before, after)) => strings([before, mark, after]),
            None => strings([text, "", ""]),
        },
        ("rpartition", Some(mark)) => match text.rsplit_once(mark) {
            Some((before, after)) => strings([before, mark, after]),
            None => strings(["", "", text]),
        },
        ("rsplit", Some(mark)) if !mark.is_empty() => rsplit(text, mark, args.get(1)),
        ("index", Some(part)) => match text.find(part) {
            Some(at) => text[..at].chars().count().into(),
            None => return Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
        },
        ("casefold" | "swapcase", None) if args.is_empty() => match name {
            "casefold" => text.to_lowercase().into(),
            _ => text.chars().map(swap_case).collect::<String>().into(),
        },
        _ => return Err(unknown()),
    })
}

fn rsplit(text: &str, mark: &str, most: Option<&Value>) -> Value {
    let most = most.and_then(Value::as_i64).and_then(|n| usize::try_from(n).ok());
    let mut parts: Vec<&str> = match most {
        Some(most) => text.rsplitn(most.saturating_add(1), mark).collect(),
        None => text.rsplit(mark).collect(),
    };
    parts.reverse();
    parts.into_iter().map(Value::from).collect()
}

fn swap_case(c: char) -> String {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

/// How `json.dumps` was asked to write.
struct Json {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sorted: bool,
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let ascii = ensure_ascii.or(kwargs.get("ensure_ascii")?);
    let indent = indent.or(kwargs.get("indent")?).filter(|v| !v.is_none());
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sorted: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let indent = indent.map(|v| match v.as_i64() {
        Some(n) => " ".repeat(n.clamp(0, 64) as usize),
        None => v.to_string(),
    });
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be a pair")),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let json =
        Json { ascii: ascii.is_some_and(|v| v.is_true()), indent, item, key, sorted: sorted == Some(true) };
    let mut out = String::new();
    json.write(value, 0, &mut out)?;
    Ok(out.into())
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|v| (None, v)).collect();
                self.container(('[', ']'), items, depth, out)?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    items.push((Some(self.map_key(&key)?), item));
                }
                if self.sorted {
                    items.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.container(('{', '}'), items, depth, out)?;
            }
            kind => {
                let message = format!("tojson: {kind} has no JSON form");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn container(
        &self,
        (open, close): (char, char),
        items: Vec<(Option<String>, Value)>,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        out.push(open);
        let empty = items.is_empty();
        for (i, (key, value)) in items.into_iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            self.line(depth + 1, out);
            if let Some(key) = key {
                self.string(&key, out);
                out.push_str(&self.key);
            }
            self.write(&value, depth + 1, out)?;
        }
        if !empty {
            self.line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn map_key(&self, key: &Value) -> Result<String, Error> {
        match key.kind() {
            ValueKind::String => Ok(key.to_string()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                let mut text = String::new();
                self.write(key, 0, &mut text)?;
                Ok(text)
            }
            kind => {
                let message = format!("tojson: keys must be strings or scalars, got {kind}");
                Err(Error::new(ErrorKind::InvalidOperation, message))
            }
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Python's `repr` of a float, with JSON's names for what is not finite.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    // Rust's shortest digits are Python's; only the choice of notation differs.
    let scientific = format!("{x:e}");
    let exponent = scientific.split_once('e').and_then(|(_, e)| e.parse::<i32>().ok()).unwrap_or(0);
    match scientific.split_once('e') {
        Some((digits, _)) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{x:?}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (123456.789, "123456.789"),
        ];
        for (x, want) in cases {
            assert_eq!(float(x), want);
        }
    }

    #[test]
    fn a_bottomless_value_is_an_error() {
        let mut value = Value::from(1);
        for _ in 0..1000 {
            value = Value::from(vec![value]);
        }
        let json = Json { ascii: false, indent: None, item: ", ".into(), key: ": ".into(), sorted: false };
        assert!(json.write(&value, 0, &mut String::new()).is_err());
    }
}
