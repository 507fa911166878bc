//! Documents as text: what is looked for, split off or taken out changes nothing else of them.
//!
//! Must hold: one pass, whatever the nesting; names are compared as they read, escapes and all, and
//! what is left stands there as it did.

use super::{Cursor, Malformed, Read, whole};

/// A member of an object, and the rest of the object.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Member<'a> {
    /// The member's value, as it stands there. Of duplicates the last.
    pub(crate) value: Option<&'a str>,
    /// The name is there more than once, or in another case of letters: which of them a service
    /// takes is not known.
    pub(crate) is_ambiguous: bool,
    /// How many other members there are, duplicates and all.
    pub(crate) others: usize,
    /// The text of the other members, without the braces.
    pub(crate) rest: String,
}

impl Member<'_> {
    /// The object without the member.
    pub(crate) fn text(&self) -> String {
        format!("{{{}}}", self.rest)
    }

    /// The object with this as the member's value, and once only.
    pub(crate) fn with(&self, name: &str, value: &str) -> String {
        let separator = if self.rest.is_empty() { "" } else { "," };
        format!("{{{}{separator}\"{name}\":{value}}}", self.rest)
    }
}

/// Splits member `name` off an object. Fails if the text is not exactly one object.
pub(crate) fn split_member<'a>(object: &'a [u8], name: &str) -> Result<Member<'a>, Malformed> {
    let mut found = Member::default();
    whole(object, |cursor| {
        if !cursor.enter(b'{')? {
            return Err(cursor.malformed("not an object"));
        }
        while cursor.member()? {
            let token = cursor.name()?;
            let (own, value) = (token.bytes(), cursor.skip()?);
            if *own == *name.as_bytes() {
                found.is_ambiguous |= found.value.is_some();
                found.value = Some(value);
                continue;
            }
            found.is_ambiguous |= own.eq_ignore_ascii_case(name.as_bytes());
            found.others += 1;
            if !found.rest.is_empty() {
                found.rest.push(',');
            }
            for part in ["\"", token.raw(), "\":", value] {
                found.rest.push_str(part);
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// The document without the members of this name, wherever they are; `None` if the text is not
/// exactly one JSON value.
pub(crate) fn without_member(text: &[u8], name: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    whole(text, |cursor| copy(cursor, name, &mut out)).ok()?;
    Some(out)
}

fn copy(cursor: &mut Cursor<'_>, without: &str, out: &mut String) -> Read<()> {
    if cursor.enter(b'{')? {
        let mut separator = '{';
        while cursor.member()? {
            let name = cursor.name()?;
            if *name.bytes() == *without.as_bytes() {
                cursor.skip()?;
                continue;
            }
            out.push(std::mem::replace(&mut separator, ','));
            for part in ["\"", name.raw(), "\":"] {
                out.push_str(part);
            }
            copy(cursor, without, out)?;
        }
        out.push_str(if separator == '{' { "{}" } else { "}" });
    } else if cursor.enter(b'[')? {
        let mut separator = '[';
        while cursor.element()? {
            out.push(std::mem::replace(&mut separator, ','));
            copy(cursor, without, out)?;
        }
        out.push_str(if separator == '[' { "[]" } else { "]" });
    } else {
        out.push_str(cursor.skip()?);
    }
    Ok(())
}

/// The path of the first object called `object`, in any case of letters, that has a member `name`;
/// such as `messages[0].metadata`. `None`, too, if the text is not exactly one JSON value.
pub(crate) fn path_to(text: &[u8], object: &str, name: &str) -> Option<String> {
    let mut search = Search {
        object,
        name,
        found: None,
    };
    whole(text, |cursor| search.value(cursor, "", false)).ok()?;
    search.found
}

struct Search<'a> {
    object: &'a str,
    name: &'a str,
    found: Option<String>,
}

impl Search<'_> {
    fn value(&mut self, cursor: &mut Cursor<'_>, path: &str, is_object: bool) -> Read<()> {
        if self.found.is_some() {
            cursor.skip()?;
        } else if cursor.enter(b'{')? {
            while cursor.member()? {
                let name = cursor.name()?.bytes();
                if is_object && name.eq_ignore_ascii_case(self.name.as_bytes()) {
                    self.found.get_or_insert_with(|| path.to_owned());
                }
                let separator = if path.is_empty() { "" } else { "." };
                let inner = format!("{path}{separator}{}", String::from_utf8_lossy(&name));
                let is_object = name.eq_ignore_ascii_case(self.object.as_bytes());
                self.value(cursor, &inner, is_object)?;
            }
        } else if cursor.enter(b'[')? {
            let mut index = 0;
            while cursor.element()? {
                self.value(cursor, &format!("{path}[{index}]"), is_object)?;
                index += 1;
            }
        } else {
            cursor.skip()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_split_off_and_put_back() {
        let cases = [
            ("{}", None, false, r#"{"m":1}"#),
            (
                r#"{"a":"é\u0041"}"#,
                None,
                false,
                r#"{"a":"é\u0041","m":1}"#,
            ),
            (
                r#"{ "m" : {"x":2} , "a":[1, 2]}"#,
                Some(r#"{"x":2}"#),
                false,
                r#"{"a":[1, 2],"m":1}"#,
            ),
            (r#"{"\u006d":null}"#, Some("null"), false, r#"{"m":1}"#),
            (
                r#"{"m":2,"b":3,"m":4}"#,
                Some("4"),
                true,
                r#"{"b":3,"m":1}"#,
            ),
            (r#"{"M":2}"#, None, true, r#"{"M":2,"m":1}"#),
        ];
        for (text, value, is_ambiguous, with) in cases {
            let member = split_member(text.as_bytes(), "m").expect(text);
            assert_eq!(
                (member.value, member.is_ambiguous),
                (value, is_ambiguous),
                "{text}"
            );
            assert_eq!(member.with("m", "1"), with);
        }
        for text in ["[]", "{", "null", r#"{"m":1}x"#] {
            split_member(text.as_bytes(), "m").expect_err(text);
        }
    }

    #[test]
    fn members_are_taken_out_wherever_they_are() {
        let cases = [
            (r#"{"k":1}"#, Some("{}")),
            (
                r#"{"a":{"k":"x","b":[{"k":{}},[],1.50]},"k":[]}"#,
                Some(r#"{"a":{"b":[{},[],1.50]}}"#),
            ),
            (r#"{"\u006b":1,"kk":"k"}"#, Some(r#"{"kk":"k"}"#)),
            (r#""k""#, Some(r#""k""#)),
            ("{", None),
        ];
        for (text, without) in cases {
            assert_eq!(
                without_member(text.as_bytes(), "k").as_deref(),
                without,
                "{text}"
            );
        }
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert_eq!(without_member(deep.as_bytes(), "k"), None);
    }

    #[test]
    fn a_member_is_found_in_objects_of_a_name_only() {
        let cases = [
            (r#"{"m":{"k":1}}"#, Some("m")),
            (r#"{"M":{"\u004b":1}}"#, Some("M")),
            (r#"{"a":[{},{"m":{"x":1,"k":null}}]}"#, Some("a[1].m")),
            (r#"{"m":{},"m":{"k":1}}"#, Some("m")),
            (r#"{"k":1,"m":"k","n":{"k":2}}"#, None),
        ];
        for (text, path) in cases {
            assert_eq!(
                path_to(text.as_bytes(), "m", "k").as_deref(),
                path,
                "{text}"
            );
        }
    }
}
