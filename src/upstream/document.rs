//! A small document that is fetched by its URL, of whoever publishes it: an issuer's keys.
//!
//! Must hold: time and size are bounded, redirects are not followed, no proxy is taken from the
//! environment, and no error names the URL.

use std::{error::Error as _, iter, time::Duration};

use http::{StatusCode, header};
use reqwest::{Client, redirect};
use tokio::{task::spawn_blocking, time::timeout};
use url::Url;

use super::transport::{no_tls, system_tls};

/// Gets the document at `url` within `time`: at most `max_bytes` bytes. By https the server is known
/// by the system's TLS roots.
pub async fn fetch_document(
    url: &Url,
    time: Duration,
    max_bytes: usize,
) -> Result<Vec<u8>, String> {
    let fetched = timeout(time, fetch(url, max_bytes)).await;
    fetched.unwrap_or_else(|_| Err(format!("no whole answer within {time:?}")))
}

async fn fetch(url: &Url, max_bytes: usize) -> Result<Vec<u8>, String> {
    let secure = url.scheme() == "https";
    // A client for each fetch: they are rare, and addresses and roots may have changed. Roots are
    // files, so they are read by a thread that may wait.
    let client = spawn_blocking(move || client(secure)).await;
    let client = client.map_err(|_| "no HTTP client could be made".to_owned())??;
    let request = client
        .get(url.clone())
        .header(header::ACCEPT, "application/json")
        .header(header::ACCEPT_ENCODING, "identity");
    let mut answer = request.send().await.map_err(|error| why(&error))?;
    if answer.status() != StatusCode::OK {
        return Err(format!(
            "the answer has status {}",
            answer.status().as_u16()
        ));
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| why(&error))? {
        if body.len() + piece.len() > max_bytes {
            return Err(format!("the answer is larger than {max_bytes} bytes"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn client(secure: bool) -> Result<Client, String> {
    let tls = if secure { system_tls()? } else { no_tls() };
    let client = Client::builder()
        .user_agent(concat!("runs-gateway/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .build();
    client.map_err(|error| error.to_string())
}

/// The innermost cause: it says why and names no URL.
fn why(error: &reqwest::Error) -> String {
    let chain = iter::successors(error.source(), |error| (*error).source());
    chain
        .last()
        .map_or_else(|| "no answer".to_owned(), ToString::to_string)
}
