//! The gateway and the embedded Runs API in one process, joined by a socket like any gateway and
//! upstream.

use std::{error::Error, net::SocketAddr, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin,
    app::App,
    chat::ChatModel,
    config::{self, Invalid, ModelConfig, Serve},
    embedded,
    telemetry::{Telemetry, in_words_of_the_model},
    upstream,
};

/// Both, serving.
#[derive(Debug)]
pub struct Dev {
    /// Where the gateway listens.
    pub grpc: SocketAddr,
    /// Where the embedded API listens.
    pub rest: SocketAddr,
    /// Where the admin port is, if there is one.
    pub admin: Option<SocketAddr>,
    /// What was configured, in one line.
    pub described: String,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Dev {
    /// Starts both. They serve until `shutdown`.
    pub async fn start(
        mut config: config::Dev,
        shutdown: CancellationToken,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let bind = async |flag: &str, address: SocketAddr| {
            TcpListener::bind(address)
                .await
                .map_err(|error| format!("cannot listen on {address} ({flag}): {error}"))
        };
        let rest_listener = bind("--rest-listen", config.rest_listen).await?;
        let rest = rest_listener.local_addr()?;
        let (limits, model) = (config.embedded.clone(), config.model.take());
        let mut serve = config.serve(rest)?;
        let model = match model {
            Some(model) => Arc::new(chat_model(&model, &serve).await?),
            None => embedded::built_in(),
        };
        // Nobody routes calls here who would have to learn of the end.
        serve.limits.drain_delay = std::time::Duration::ZERO;
        let app = App::new(&serve).await?;
        let described = app.describe(&serve);
        let listener = bind("--listen", serve.listen).await?;
        let grpc = listener.local_addr()?;
        let admin_listener = admin::listen(serve.telemetry.admin).await?;
        let admin = admin_listener
            .as_ref()
            .map(TcpListener::local_addr)
            .transpose()?;
        let tasks = TaskTracker::new();
        // The upstream outlives the gateway, which may have to ask it about the streams that it
        // ends.
        let upstream_shutdown = CancellationToken::new();
        tasks.spawn({
            let upstream_shutdown = upstream_shutdown.clone();
            async move {
                let clock = embedded::Clock::real();
                let served =
                    embedded::serve_model(rest_listener, limits, clock, model, upstream_shutdown);
                if let Err(error) = served.await {
                    tracing::error!(%error, "the embedded API ended");
                }
            }
        });
        tasks.spawn({
            let shutdown = shutdown.clone();
            async move {
                app.serve(listener, admin_listener, shutdown).await;
                upstream_shutdown.cancel();
            }
        });
        tasks.close();
        Ok(Self {
            grpc,
            rest,
            admin,
            described,
            tasks,
            shutdown,
        })
    }

    /// Waits until both have ended after the shutdown.
    pub async fn ended(&self) {
        self.tasks.wait().await;
    }

    /// Ends both.
    pub async fn end(self) {
        self.shutdown.cancel();
        self.ended().await;
    }
}

/// The model behind a chat-completions endpoint, which is asked as the gateway asks its upstream.
async fn chat_model(model: &ModelConfig, serve: &Serve) -> Result<ChatModel, Invalid> {
    let upstream = model.upstream(&serve.upstream);
    let client = upstream::Client::new(&upstream, &Telemetry::of_model())
        .await
        .map_err(|error| Invalid::new(in_words_of_the_model(&error)))?;
    Ok(ChatModel::new(
        client,
        model.name.clone(),
        serve.streams.idle,
        model.limits.clone(),
    ))
}
