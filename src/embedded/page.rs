//! Lists: the query of a list, and the page that it asks for.
//!
//! Must hold: whoever follows `last_id` by `after` while `has_more` sees every entry once, in
//! either order.

use axum::http::Uri;
use url::form_urlencoded;

use super::{error::Error, shape};

/// The most entries on a page if the caller does not say.
const LIMIT: usize = 20;

/// What a list was asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Query {
    limit: usize,
    ascending: bool,
    after: Option<String>,
    before: Option<String>,
    /// Only messages of this run.
    pub(super) run_id: Option<String>,
}

/// A part of a list.
pub(super) struct Page<T> {
    pub(super) data: Vec<T>,
    pub(super) first_id: String,
    pub(super) last_id: String,
    pub(super) has_more: Option<bool>,
}

impl Query {
    /// Reads a list's query. Besides the four of every list it may have the parameters in `others`.
    pub(super) fn of(uri: &Uri, others: &[&str]) -> Result<Self, Error> {
        let mut query = Self {
            limit: LIMIT,
            ascending: false,
            after: None,
            before: None,
            run_id: None,
        };
        for (name, value) in parameters(uri) {
            match &*name {
                "limit" => {
                    let limit = value.parse().map_err(|_| {
                        let message = format!("Invalid type for 'limit': expected an integer, but got '{value}' instead.");
                        Error::parameter("limit", "invalid_type", message)
                    })?;
                    shape::between("limit", limit, 1, 100)?;
                    query.limit = usize::try_from(limit).unwrap_or(LIMIT);
                }
                "order" if matches!(&*value, "asc" | "desc") => query.ascending = value == "asc",
                "order" => return Err(Error::not_one_of("order", &value, &["asc", "desc"])),
                "after" => query.after = Some(value),
                "before" => query.before = Some(value),
                "run_id" if others.contains(&"run_id") => query.run_id = Some(value),
                name => other(name, &value, others)?,
            }
        }
        Ok(query)
    }

    /// The page of `entries`, which come in the order of their creation.
    pub(super) fn page<'a, T: Clone + 'a>(
        &self,
        entries: impl Iterator<Item = &'a T>,
        id: impl Fn(&T) -> &str,
    ) -> Result<Page<T>, Error> {
        let mut entries: Vec<&T> = entries.collect();
        if !self.ascending {
            entries.reverse();
        }
        let index_of = |name: &str, cursor: &str| {
            let unknown = || {
                Error::parameter(
                    name,
                    "invalid_value",
                    format!("Invalid '{name}': no entry has the id '{cursor}'."),
                )
            };
            entries
                .iter()
                .position(|entry| id(entry) == cursor)
                .ok_or_else(unknown)
        };
        let from = self
            .after
            .as_deref()
            .map(|cursor| index_of("after", cursor))
            .transpose()?
            .map_or(0, |at| at + 1);
        let to = self
            .before
            .as_deref()
            .map(|cursor| index_of("before", cursor))
            .transpose()?
            .unwrap_or(entries.len());
        let range = entries.get(from..to).unwrap_or_default();
        let left_out = range.len().saturating_sub(self.limit);
        // The page before a cursor is the one that ends there.
        let page = if self.after.is_none() && self.before.is_some() {
            &range[left_out..]
        } else {
            &range[..range.len() - left_out]
        };
        let id_of =
            |entry: Option<&&T>| entry.map_or_else(String::new, |entry| id(entry).to_owned());
        Ok(Page {
            first_id: id_of(page.first()),
            last_id: id_of(page.last()),
            has_more: Some(left_out > 0),
            data: page.iter().map(|entry| (*entry).clone()).collect(),
        })
    }
}

fn parameters(uri: &Uri) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned()
}

/// The one thing that `include[]` may ask for. There are no file searches here, so that it adds
/// nothing.
pub(super) const INCLUDE: &str = "step_details.tool_calls[*].file_search.results[*].content";

fn other(name: &str, value: &str, known: &[&str]) -> Result<(), Error> {
    // Some clients leave the brackets out.
    let name = if name == "include" { "include[]" } else { name };
    if !known.contains(&name) {
        return Err(Error::parameter(
            name,
            "unknown_parameter",
            format!("Unknown query parameter: '{name}'."),
        ));
    }
    if name == "include[]" && value != INCLUDE {
        return Err(Error::not_one_of("include", value, &[INCLUDE]));
    }
    Ok(())
}
