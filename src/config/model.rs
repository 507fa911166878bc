//! The flags of the model that answers behind the embedded API.
//!
//! Must hold: no error text holds a key. What limits there are stands with [`ChatLimits`].

use std::path::PathBuf;

use clap::Args;
use url::Url;

use super::{invalid::Invalid, values::base_url};
use crate::{
    chat::ChatLimits,
    upstream::{HttpVersion, Upstream, UpstreamFiles, UpstreamLimits},
};

/// The flags.
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

    #[command(flatten)]
    limits: ChatLimits,
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
        Ok(Some(ModelConfig {
            base,
            name: self.model.filter(|name| !name.is_empty()),
            limits: self.limits,
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
            limits: UpstreamLimits {
                http: HttpVersion::Negotiated,
                ..upstream.limits.clone()
            },
            files: self.files.clone(),
            reload_interval: upstream.reload_interval,
            ..Upstream::new(self.base.clone())
        }
    }
}
