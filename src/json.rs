//! JSON as Python writes it: with numbers that are none. Not a parser: what is no JSON is made into some.

use serde_json::Value;

/// The value of `bytes`, in which bare `Infinity`, `-Infinity` and `NaN` are what transformers writes for them since
/// version 5: `{"__float__": "Infinity"}`.
///
/// # Errors
/// No JSON otherwise.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    let error = match serde_json::from_slice(bytes) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let (mut out, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
    let mut quoted = false;
    while let [first, after @ ..] = rest {
        let name = ["-Infinity", "Infinity", "NaN"].into_iter().find(|n| rest.starts_with(n.as_bytes()));
        match (first, name) {
            (_, Some(name)) if !quoted => {
                out.extend_from_slice(format!("{{\"__float__\":\"{name}\"}}").as_bytes());
                rest = &rest[name.len()..];
                continue;
            }
            (b'\\', _) if quoted => {
                out.push(b'\\');
                out.extend(after.first());
                rest = after.get(1..).unwrap_or_default();
                continue;
            }
            (b'"', _) => quoted = !quoted,
            _ => {}
        }
        out.push(*first);
        rest = after;
    }
    // The first error is the one that tells about the file.
    serde_json::from_slice(&out).map_err(|_| error)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::parse;

    #[test]
    fn numbers_that_are_none() {
        let text = r#"{"a": [0.0, Infinity], "b": "Infinity \"NaN\"", "c": -Infinity, "d": NaN}"#;
        let float = |name: &str| json!({"__float__": name});
        let wanted = json!({"a": [0.0, float("Infinity")], "b": "Infinity \"NaN\"", "c": float("-Infinity"), "d": float("NaN")});
        assert_eq!(parse(text.as_bytes()).ok(), Some(wanted));
        assert!(parse(b"{\"a\": Inf}").is_err() && parse(b"{\"a\\").is_err() && parse(b"").is_err());
    }
}
