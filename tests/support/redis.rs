//! A Redis for one test, on a free port of loopback.

use std::{
    env, fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{net::TcpStream, time::sleep};

/// A Redis that ends with its test.
pub(crate) struct Redis {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl Redis {
    /// Starts one. `None` if `redis-server` is not installed, which fails the test if `CI` is set.
    pub(crate) async fn start() -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let folder = env::temp_dir().join(format!("runs-gateway-redis-{port}"));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("key"), "a secret of at least thirty-two bytes").expect("a file");
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .current_dir(&folder)
            .stdout(Stdio::null())
            .spawn();
        let Ok(process) = process else {
            assert!(env::var_os("CI").is_none(), "redis-server is not installed");
            println!("redis-server is not installed: what needs it is not tested");
            return None;
        };
        for _ in 0..400 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(Self {
                    process,
                    port,
                    folder,
                });
            }
            sleep(Duration::from_millis(25)).await;
        }
        panic!("redis-server does not answer");
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The flags of a gateway that has its event log here.
    pub(crate) fn flags(&self) -> [String; 4] {
        [
            "--event-log".to_owned(),
            self.url(),
            "--event-log-key-file".to_owned(),
            self.folder.join("key").display().to_string(),
        ]
    }

    /// Waits until a gateway waits for what another one does.
    pub(crate) async fn somebody_waits(&self) {
        let client = redis::Client::open(self.url()).expect("a URL");
        let client = client.get_multiplexed_async_connection().await;
        let mut client = client.expect("a store");
        let waits = async {
            loop {
                let channels: Vec<String> = redis::cmd("PUBSUB")
                    .arg(&["CHANNELS", "runs-gateway:{*}:events"])
                    .query_async(&mut client)
                    .await
                    .expect("channels");
                if !channels.is_empty() {
                    break;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let waits = tokio::time::timeout(Duration::from_secs(20), waits).await;
        waits.expect("somebody should wait by now");
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("a process that runs");
        self.process.wait().expect("its end");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        _ = fs::remove_dir_all(&self.folder);
    }
}
