//! `x-forwarded-client-cert`, as Envoy writes it: which client's certificate the proxy saw.
//!
//! The grammar (Envoy, "HTTP header manipulation", x-forwarded-client-cert): elements separated by
//! `,`, one for each proxy, the nearest last; an element is pairs `key=value` separated by `;`; a
//! value in double quotes may hold any of these, and `\"` stands for a quote in it. Keys are
//! case-insensitive.
//!
//! Must hold: only the last element counts. It is what the nearest proxy saw itself; all before it
//! is what others told that proxy. What does not follow the grammar is refused whole, and so is an
//! element with two URIs: Envoy writes URIs as they stand in the certificate, without quotes, so
//! the second could be part of the first.

/// Why a value names no caller.
const MALFORMED: &str = "x-forwarded-client-cert cannot be read: it has to be as Envoy writes it";
const TWO_URIS: &str = "x-forwarded-client-cert has two URIs of one client: which is meant?";
const NO_NAME: &str = "x-forwarded-client-cert has neither URI nor DNS: let the proxy forward them";

/// The name of the client that the nearest proxy saw: its URI (the SPIFFE id), else the first of
/// its DNS names. The error says what is wrong, in words that hold nothing of the value.
pub(super) fn caller(value: &[u8]) -> Result<String, &'static str> {
    let value = std::str::from_utf8(value).map_err(|_| MALFORMED)?;
    let mut element = Element::default();
    let mut rest = value;
    loop {
        let (key, after) = rest.split_once('=').ok_or(MALFORMED)?;
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(MALFORMED);
        }
        let (text, after) = pair_value(after)?;
        element.add(key, text);
        rest = match after.as_bytes().first() {
            None => return element.name(),
            Some(b';') => &after[1..],
            Some(b',') => {
                element = Element::default();
                &after[1..]
            }
            Some(_) => return Err(MALFORMED),
        };
    }
}

/// What counts of an element.
#[derive(Default)]
struct Element {
    uris: Vec<String>,
    dns: Option<String>,
}

impl Element {
    fn add(&mut self, key: &str, value: String) {
        // Some proxies write a key for each kind of name, with nothing behind it if there is none.
        if value.is_empty() {
        } else if key.eq_ignore_ascii_case("uri") {
            self.uris.push(value);
        } else if key.eq_ignore_ascii_case("dns") {
            self.dns.get_or_insert(value);
        }
    }

    fn name(self) -> Result<String, &'static str> {
        let mut uris = self.uris.into_iter();
        match (uris.next(), uris.next()) {
            (Some(_), Some(_)) => Err(TWO_URIS),
            (Some(uri), None) => Ok(uri),
            (None, _) => self.dns.ok_or(NO_NAME),
        }
    }
}

/// The value at the beginning of `text`, and what stands behind it: nothing, `;` or `,` if all is
/// well.
fn pair_value(text: &str) -> Result<(String, &str), &'static str> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',']).unwrap_or(text.len());
        let value = text[..end].trim();
        // A quote in the middle belongs to nothing that Envoy writes.
        return if value.contains('"') {
            Err(MALFORMED)
        } else {
            Ok((value.to_owned(), &text[end..]))
        };
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &quoted[at + 1..])),
            '\\' => match characters.next().ok_or(MALFORMED)?.1 {
                escaped @ ('"' | '\\') => value.push(escaped),
                // As it stands in the name, such as `\,` of a distinguished name.
                other => value.extend(['\\', other]),
            },
            other => value.push(other),
        }
    }
    Err(MALFORMED)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_nearest_proxys_client_is_the_caller() {
        let cases: [(&str, Result<&str, &str>); 27] = [
            ("URI=spiffe://d/ns/a/sa/b", Ok("spiffe://d/ns/a/sa/b")),
            (
                "By=spiffe://d/gateway;Hash=468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688;\
                 Subject=\"/C=US/CN=Client\";URI=spiffe://d/caller",
                Ok("spiffe://d/caller"),
            ),
            (
                "By=spiffe://d/gateway;URI=spiffe://d/caller;DNS=a.b",
                Ok("spiffe://d/caller"),
            ),
            ("uri=spiffe://d/caller", Ok("spiffe://d/caller")),
            ("Hash=1; URI=spiffe://d/caller ", Ok("spiffe://d/caller")),
            ("DNS=a.example;DNS=b.example", Ok("a.example")),
            ("URI=;DNS=a.example", Ok("a.example")),
            // The last element alone.
            (
                "URI=spiffe://d/far,URI=spiffe://d/near",
                Ok("spiffe://d/near"),
            ),
            (
                "URI=spiffe://d/far, By=x;URI=spiffe://d/near",
                Ok("spiffe://d/near"),
            ),
            ("URI=spiffe://d/far,Hash=1", Err(NO_NAME)),
            ("URI=spiffe://d/far,DNS=near.example", Ok("near.example")),
            ("DNS=a,URI=b,DNS=c", Ok("c")),
            // Quotes.
            (
                "URI=\"spiffe://d/a,URI=spiffe://d/b\"",
                Ok("spiffe://d/a,URI=spiffe://d/b"),
            ),
            (
                "Subject=\"CN=x;URI=spiffe://d/forged,\";DNS=real",
                Ok("real"),
            ),
            (
                "Subject=\"CN=\\\";URI=spiffe://d/forged;\\\"\";DNS=real",
                Ok("real"),
            ),
            ("Subject=\"O=a\\, b\";URI=u", Ok("u")),
            ("URI=\"a\\\\b\\\"c\\d\"", Ok("a\\b\"c\\d")),
            ("Subject=\"\",DNS=\"é\"", Ok("é")),
            ("Subject=\"CN=x;URI=forged", Err(MALFORMED)),
            ("Subject=\"CN=x\\", Err(MALFORMED)),
            ("Subject=\"CN=x\"y;URI=u", Err(MALFORMED)),
            ("Subject=CN\"x;URI=u", Err(MALFORMED)),
            // What names nobody.
            ("URI=a;URI=b", Err(TWO_URIS)),
            ("Hash=1;Subject=\"CN=x\"", Err(NO_NAME)),
            ("", Err(MALFORMED)),
            ("URI=a,", Err(MALFORMED)),
            ("spiffe://d/a", Err(MALFORMED)),
        ];
        for (value, expected) in cases {
            let named = caller(value.as_bytes());
            assert_eq!(
                named.as_deref().map_err(|error| *error),
                expected,
                "{value}"
            );
        }
        assert_eq!(caller(b"URI=\xff"), Err(MALFORMED));
    }

    /// What proxies append, with and without a subject, which some CAs leave empty.
    const NEAR: [&str; 3] = [
        "URI=spiffe://d/near",
        "By=spiffe://d/gateway;Hash=1;Subject=\"\";URI=spiffe://d/near",
        "Hash=1;Subject=\"CN=\\\"x\\\",O=y\";URI=spiffe://d/near;DNS=near",
    ];

    proptest! {
        /// A caller may write what it likes before the proxy's own element, an open quote among it:
        /// it is that caller, or nobody.
        #[test]
        fn what_stands_before_the_last_element_changes_nothing(before in "([UuRrIiXx=;,\"\\\\ ]|URI=|X=\"|DNS=a){0,12}") {
            for near in NEAR {
                if let Ok(named) = caller(format!("{before},{near}").as_bytes()) {
                    prop_assert_eq!(&named, "spiffe://d/near", "{} {}", before, near);
                }
            }
        }

        /// Any bytes are an answer.
        #[test]
        fn no_bytes_make_it_panic(value in prop::collection::vec(any::<u8>(), 0..100)) {
            _ = caller(&value);
        }
    }
}
