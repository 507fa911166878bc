//! The flags of the model that answers behind the embedded API.
//!
//! Must hold: no error text holds a key. What each limit means stands with [`ChatLimits`].

use std::path::PathBuf;

use clap::Args;
use http::HeaderMap;
use humantime::Duration;
use url::Url;

use super::{invalid::Invalid, values::base_url};
use crate::{
    chat::ChatLimits,
    upstream::{AuthStyle, HttpVersion, Upstream, UpstreamFiles},
};

/// The flags. A duration is written `500ms`, `30s`, `10m`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelArgs {
    /// Answers come from a model behind this chat-completions endpoint, in place of the built-in
    /// one: the URL before `/chat/completions`, such as `http://localhost:11434/v1`.
    #[arg(long)]
    model_url: Option<String>,

    /// A file with the key for that endpoint.
    #[arg(long, requires = "model_url")]
    model_api_key_file: Option<PathBuf>,

    /// CAs that sign that endpoint's certificate, PEM, in place of the system's.
    #[arg(long, requires = "model_url")]
    model_ca_file: Option<PathBuf>,

    /// The model's name there, in place of what runs and assistants name.
    #[arg(long, requires = "model_url")]
    model: Option<String>,

    /// Tokens that the model reads and writes at most. Of a longer thread the oldest messages are
    /// left out, by an estimate.
    #[arg(long, default_value_t = ChatLimits::default().context_tokens, value_parser = clap::value_parser!(u32).range(1..))]
    model_context_tokens: u32,

    /// Time from a request to the last word of its reply.
    #[arg(long, default_value_t = ChatLimits::default().time.into())]
    model_timeout: Duration,

    /// Bytes of text, names and arguments in one reply of the model.
    #[arg(long, default_value_t = ChatLimits::default().reply_bytes)]
    model_max_reply_bytes: usize,

    /// Tool calls in one reply of the model.
    #[arg(long, default_value_t = ChatLimits::default().tool_calls)]
    model_max_tool_calls: usize,
}

/// A model behind a chat-completions endpoint.
#[derive(Debug)]
pub struct ModelConfig {
    /// The URL before `/chat/completions`.
    pub base: Url,
    /// The model's name there, in place of what runs and assistants name.
    pub name: Option<String>,
    /// What one reply may take.
    pub limits: ChatLimits,
    files: UpstreamFiles,
}

impl ModelArgs {
    /// The model, if one is named.
    pub(super) fn model(self) -> Result<Option<ModelConfig>, Invalid> {
        let Some(url) = self.model_url else {
            return Ok(None);
        };
        let base = base_url("--model-url", &url)?;
        if base.path().trim_end_matches('/').ends_with("/completions") {
            return Err(Invalid::new(
                "--model-url is the URL before /chat/completions: leave that out",
            ));
        }
        let limits = ChatLimits {
            reply_bytes: self.model_max_reply_bytes,
            tool_calls: self.model_max_tool_calls,
            time: *self.model_timeout,
            context_tokens: self.model_context_tokens,
        };
        if limits.time.is_zero() || limits.reply_bytes == 0 {
            return Err(Invalid::new(
                "--model-timeout 0s and --model-max-reply-bytes 0 leave no reply: give them more",
            ));
        }
        Ok(Some(ModelConfig {
            base,
            name: self.model.filter(|name| !name.is_empty()),
            limits,
            files: UpstreamFiles {
                key: self.model_api_key_file,
                ca: self.model_ca_file,
                identity: None,
            },
        }))
    }
}

impl ModelConfig {
    /// Whether the endpoint is shown a key.
    pub fn has_key(&self) -> bool {
        self.files.key.is_some()
    }

    /// How the endpoint is talked to: as `upstream` is, in all that is not said of it.
    pub fn upstream(&self, upstream: &Upstream) -> Upstream {
        Upstream {
            base: self.base.clone(),
            auth: AuthStyle::Bearer,
            key: None,
            headers: HeaderMap::new(),
            http: HttpVersion::Negotiated,
            files: self.files.clone(),
            ..upstream.clone()
        }
    }
}
