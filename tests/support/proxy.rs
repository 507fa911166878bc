//! A proxy between a client and a gateway, whose connections can be cut.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use runs_gateway::v1::run_service_client::RunServiceClient;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tonic::transport::{Channel, Endpoint};

use super::gateway::Gateway;

/// A proxy before a gateway.
pub(crate) struct Proxy {
    address: SocketAddr,
    to: Arc<Mutex<Option<SocketAddr>>>,
    connections: Arc<Mutex<JoinSet<()>>>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn before(gateway: &Gateway) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let to = Arc::new(Mutex::new(Some(gateway.address())));
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let (target, accepted) = (Arc::clone(&to), Arc::clone(&connections));
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            while let Ok((mut caller, _)) = listener.accept().await {
                let Some(to) = *target.lock().expect("no panic") else {
                    continue;
                };
                accepted.lock().expect("no panic").spawn(async move {
                    if let Ok(mut gateway) = TcpStream::connect(to).await {
                        _ = copy_bidirectional(&mut caller, &mut gateway).await;
                    }
                });
            }
        });
        Self {
            address,
            to,
            connections,
            _accepting: accepting,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts what is open.
    pub(crate) fn cut(&self) {
        self.connections.lock().expect("no panic").abort_all();
    }

    /// New connections lead to this gateway, or are cut at once.
    pub(crate) fn lead_to(&self, gateway: Option<&Gateway>) {
        *self.to.lock().expect("no panic") = gateway.map(Gateway::address);
    }

    pub(crate) fn client(&self) -> RunServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("a URL");
        RunServiceClient::new(endpoint.connect_lazy())
    }
}
