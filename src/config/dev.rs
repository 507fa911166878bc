//! `dev` and `demo`: their flags, and what comes of them.
//!
//! Must hold: a model's key is offered to nobody who can reach a port unless that was asked for by
//! name.

use std::net::SocketAddr;

use clap::{Args, Parser as _};

use super::{
    Cli, Command, Invalid, ModelConfig, Serve, TelemetryConfig, gateway::GatewayArgs,
    model::ModelArgs, serve::differ, values::address,
};
use crate::{embedded, upstream::Upstream};

/// The flags of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    #[command(flatten)]
    gateway: GatewayArgs,

    /// Address to open the embedded Runs API on for other clients, such as the official SDKs. Port
    /// 0 takes a free port.
    #[arg(long, default_value = "127.0.0.1:0", value_parser = address)]
    rest_listen: SocketAddr,

    /// Serve whoever reaches an address that others can reach, with the key of the model.
    #[arg(long, help_heading = "Access")]
    allow_anonymous: bool,

    #[command(flatten)]
    embedded: embedded::Limits,

    #[command(flatten)]
    model: ModelArgs,
}

/// The flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    model: ModelArgs,
}

/// The configuration of `dev`.
#[derive(Debug)]
pub struct Dev {
    /// Where the embedded API listens.
    pub rest_listen: SocketAddr,
    /// What the embedded API holds at most.
    pub embedded: embedded::Limits,
    /// What answers, if not the built-in model.
    pub model: Option<ModelConfig>,
    gateway: GatewayArgs,
}

impl TryFrom<DevArgs> for Dev {
    type Error = Invalid;

    fn try_from(args: DevArgs) -> Result<Self, Invalid> {
        let model = args.model.model()?;
        let has_key = model.as_ref().is_some_and(ModelConfig::has_key);
        let listen = args.gateway.listen;
        let ways = [
            // The embedded API asks for no key.
            ("--rest-listen", args.rest_listen, false),
            ("--listen", listen, args.gateway.access.is_closed()),
        ];
        let open = ways
            .into_iter()
            .find(|(_, address, closed)| !closed && !address.ip().is_loopback());
        if let Some((flag, address, _)) = open.filter(|_| has_key && !args.allow_anonymous) {
            return Err(Invalid::new(format!(
                "{flag} {address} can be reached by others, and whoever reaches it would use the key of --model-api-key-file: \
                 listen on a loopback address, or allow it by --allow-anonymous"
            )));
        }
        let access = &args.gateway.access;
        let open_to_pages = access.is_open_to_pages() && !access.is_closed();
        if open_to_pages && has_key && !args.allow_anonymous {
            return Err(Invalid::new(
                "with --web-origins * every page that a browser near the gateway opens would use the key of \
                 --model-api-key-file: name the origins, or allow it by --allow-anonymous",
            ));
        }
        Ok(Self {
            rest_listen: args.rest_listen,
            embedded: args.embedded,
            model,
            gateway: args.gateway,
        })
    }
}

impl Dev {
    /// Logs, metrics and traces.
    pub fn telemetry(&self) -> Result<TelemetryConfig, Invalid> {
        self.gateway.telemetry.clone().try_into()
    }

    /// Threads that serve calls; `None` for one per core.
    pub fn worker_threads(&self) -> Option<usize> {
        self.gateway.worker_threads.map(usize::from)
    }

    /// The gateway in front of the embedded API, once that listens on `rest`.
    pub fn serve(self, rest: SocketAddr) -> Result<Serve, Invalid> {
        let base = format!("http://{rest}/v1")
            .parse()
            .map_err(|_| Invalid::new(format!("{rest} is not an address")))?;
        differ(("--listen", self.gateway.listen), ("--rest-listen", rest))?;
        Serve::new(self.gateway, Upstream::new(base))
    }
}

impl TryFrom<DemoArgs> for Dev {
    type Error = Invalid;

    /// `dev` on free ports, with the model that `demo` was given, and without traces.
    fn try_from(args: DemoArgs) -> Result<Self, Invalid> {
        let free = "127.0.0.1:0";
        let flags = ["--listen", "--rest-listen", "--admin-listen"];
        let flags = flags.into_iter().flat_map(|flag| [flag, free]);
        let cli = Cli::try_parse_from(["runs-gateway", "dev"].into_iter().chain(flags));
        match cli.map(|cli| cli.command) {
            Ok(Command::Dev(mut dev)) => {
                dev.model = args.model;
                dev.gateway.telemetry.untraced = true;
                Self::try_from(*dev)
            }
            Ok(_) => Err(Invalid::new("the command is dev")),
            Err(error) => Err(Invalid::new(error.to_string())),
        }
    }
}
