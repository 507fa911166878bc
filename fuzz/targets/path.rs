//! Paths: whatever ids a caller sends, the endpoint is the one of its call, on the same server, and
//! the ids arrive.

#![no_main]

use std::sync::LazyLock;

use http::Uri;
use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;
use runs_gateway::{
    upstream::fuzzing::url,
    v1::{FILES, ListRunStepsRequest},
};
use url::Url;

/// Upstreams as they are configured.
static BASES: LazyLock<Vec<Url>> = LazyLock::new(|| {
    let bases = [
        "https://host",
        "http://[::1]:8080/",
        "https://host/openai/v1/",
        "https://host/a%2fb/é?api-version=1&x=%26",
    ];
    bases
        .iter()
        .map(|base| base.parse().expect("a URL"))
        .collect()
});

/// The routes, as the contract's comments have them.
static ROUTES: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let lines = FILES.iter().flat_map(|(_, text)| text.lines());
    let routes: Vec<_> = lines
        .filter_map(|line| line.split_once("// REST: ")?.1.split_whitespace().nth(1))
        .collect();
    assert!(
        routes.len() >= 23 && routes.iter().all(|route| route.starts_with('/')),
        "{routes:?}"
    );
    routes
});

/// Base, route, how often each id is repeated, ids, limit, order, cursors, includes.
type Input<'a> = (
    u8,
    u8,
    [u8; 3],
    [&'a str; 3],
    Option<i32>,
    i32,
    [&'a str; 2],
    Vec<&'a str>,
);

/// So long that nobody means it.
const TOO_LONG: usize = 10 << 10;

/// How long a text is in a URL.
fn encoded(text: &str) -> usize {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                1
            } else {
                3
            }
        })
        .sum()
}

fuzz_target!(|input: Input| {
    let (base, route, times, ids, limit, order, [after, before], include) = input;
    let base = &BASES[usize::from(base) % BASES.len()];
    let route = ROUTES[usize::from(route) % ROUTES.len()];
    let ids: Vec<_> = ids
        .iter()
        .zip(times)
        .map(|(id, times)| id.repeat(times.into()))
        .take(route.matches('{').count())
        .collect();
    let query = ListRunStepsRequest {
        limit,
        order,
        after: after.to_owned(),
        before: before.to_owned(),
        include: include.iter().map(|it| (*it).to_owned()).collect(),
        ..ListRunStepsRequest::default()
    };

    let no_segment = ids.iter().any(|id| ["", ".", ".."].contains(&id.as_str()));
    let mut filling = ids.iter().map(String::as_str);
    let filled: Vec<_> = route
        .split('/')
        .map(|it| {
            if it.starts_with('{') {
                filling.next().expect("as many")
            } else {
                it
            }
        })
        .collect();
    let another = ROUTES
        .iter()
        .any(|other| *other != route && other.split('/').eq(filled.iter().copied()));
    let no_page =
        limit.is_some_and(|limit| !(1..=100).contains(&limit)) || !(0..=2).contains(&order);
    let too_long = ids
        .iter()
        .map(String::as_str)
        .chain([after, before])
        .any(|text| encoded(text) > TOO_LONG);
    let includes = include.iter().map(|it| encoded(it)).sum::<usize>();
    let refused = no_segment || another || no_page || too_long || includes > TOO_LONG;
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let fields = route
        .split('/')
        .filter_map(|it| it.strip_prefix('{')?.strip_suffix('}'));
    let named: Vec<_> = fields.zip(ids.iter().copied()).collect();
    let url = match url(base, route, &named, &query) {
        Ok(url) => url,
        Err(error) => {
            return assert!(
                refused || includes + 16 * include.len() > TOO_LONG,
                "{} for {ids:?}",
                error.log()
            );
        }
    };
    assert!(!refused, "{ids:?} became {url}");

    assert_eq!(
        (url.scheme(), url.authority(), url.fragment()),
        (base.scheme(), base.authority(), None)
    );
    let decoded = |segment| {
        percent_decode_str(segment)
            .decode_utf8()
            .expect("UTF-8")
            .into_owned()
    };
    let prefix = base
        .path_segments()
        .expect("segments")
        .filter(|segment| !segment.is_empty())
        .map(decoded);
    let mut arriving = ids.iter();
    let own = route.split('/').skip(1);
    let own = own.map(|segment| {
        if segment.starts_with('{') {
            arriving.next().expect("as many")
        } else {
            segment
        }
    });
    let expected: Vec<_> = prefix.chain(own.map(str::to_owned)).collect();
    assert_eq!(
        url.path_segments()
            .expect("segments")
            .map(decoded)
            .collect::<Vec<_>>(),
        expected,
        "{url}"
    );

    let mut pairs: Vec<_> = base
        .query_pairs()
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    let mut pair = |name: &str, value: &str| pairs.push((name.to_owned(), value.to_owned()));
    if let Some(limit) = limit {
        pair("limit", &limit.to_string());
    }
    if order > 0 {
        pair("order", ["asc", "desc"][usize::from(order == 2)]);
    }
    [("after", after), ("before", before)]
        .iter()
        .filter(|(_, id)| !id.is_empty())
        .for_each(|(name, id)| pair(name, id));
    for it in &include {
        pair("include[]", it);
    }
    let found: Vec<_> = url
        .query_pairs()
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    assert_eq!(found, pairs, "{url}");

    // What is sent is this URL and not what another parser makes of it.
    let sent: Uri = url.as_str().parse().expect("fit to be sent");
    assert_eq!((sent.path(), sent.query()), (url.path(), url.query()));
});
