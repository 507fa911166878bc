//! The client of one upstream: requests that may be sent, each attempt at one, and its answer.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use tokio::time::Instant;

use super::{
    admission::Admission,
    answer::{self, Answer, Reading},
    answerable::Answerable,
    caller::{Caller, IDEMPOTENCY_KEY},
    failure,
    isolation::{Allowed, Isolation},
    own_secrets::OwnSecrets,
    request::Request,
    retry::Retry,
    settings::Upstream,
    target::Base,
    transport::Transport,
};
use crate::{
    error::Error,
    reloadable::Reloadable,
    telemetry::{Telemetry, UpstreamRequest},
};

/// A client of one upstream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) telemetry: Telemetry,
    pub(super) transport: Reloadable<Transport>,
    /// The header that has the gateway's own key, if the key expires.
    key: Option<(HeaderName, Reloadable<HeaderValue>)>,
    pub(super) admission: Admission,
    pub(super) retry: Arc<Retry>,
    pub(super) base: Base,
    pub(super) own_key: bool,
    /// What no error tells of it.
    pub(super) secrets: Arc<OwnSecrets>,
    /// Which callers may use what, if they are isolated from each other.
    pub(super) isolation: Option<Arc<Isolation>>,
    pub(super) answer_timeout: Duration,
    pub(super) max_answer_bytes: usize,
    pub(super) max_event_bytes: usize,
}

impl Client {
    /// A client of `upstream`, whose requests `telemetry` sees. Connects when first used. Waits for
    /// the command that prints the key, if there is one.
    ///
    /// Fails if a file cannot be read or understood, the command fails, the key cannot stand in a
    /// header, or there are no TLS roots. Has to be called in a runtime.
    pub async fn new(upstream: &Upstream, telemetry: &Telemetry) -> Result<Self, String> {
        // reqwest takes whatever provider the process has. A second installation changes nothing
        // and is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let secrets = Arc::<OwnSecrets>::default();
        for value in upstream.headers.values() {
            secrets.add(value.to_str().unwrap_or_default());
        }
        let transport = Transport::watch(upstream, telemetry, Arc::clone(&secrets))?;
        let auth = upstream.auth.clone();
        let key = match upstream.key_command.clone() {
            Some(command) => Some((
                auth.header(),
                command.watch(auth, telemetry, Arc::clone(&secrets)).await?,
            )),
            None => None,
        };
        Ok(Self {
            telemetry: telemetry.clone(),
            transport,
            key,
            admission: Admission::new(
                upstream.limits.requests.clone(),
                telemetry.metrics().queued.clone(),
            ),
            retry: Arc::new(Retry::new(upstream.limits.retry.clone())),
            base: Base::new(&upstream.base),
            own_key: upstream.has_own_key(),
            secrets,
            isolation: None,
            answer_timeout: upstream.limits.answer_timeout,
            max_answer_bytes: upstream.limits.max_answer_bytes,
            max_event_bytes: upstream.limits.max_event_bytes,
        })
    }

    /// What sees this client's requests.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Sends a request and reads its answer.
    pub(super) async fn send<M: Answerable>(
        &self,
        caller: &Caller,
        request: Request,
    ) -> Result<Answer<M>, Error> {
        let request = self.allow(caller, request).await?;
        self.send_allowed(caller, &request).await
    }

    pub(super) async fn send_allowed<M: Answerable>(
        &self,
        caller: &Caller,
        request: &Allowed,
    ) -> Result<Answer<M>, Error> {
        self.retry
            .run(caller, |attempt| self.send_once(caller, request, attempt))
            .await
    }

    pub(super) async fn send_once<M: Answerable>(
        &self,
        caller: &Caller,
        request: &Allowed,
        attempt: u32,
    ) -> Result<Answer<M>, Error> {
        let idempotency = request.idempotency;
        let mut permit = self.admission.enter(caller.owner).await?;
        permit.sends(idempotency);
        let connection_group = permit.connection_group;
        let mut upstream_request = self.note(caller, request, attempt);
        let mut id = None;
        let answer = {
            // Pinned, and not moved into the timeout: it is large. So would the request be, were it
            // held here while its answer is awaited.
            let sent = Instant::now();
            let asking = pin!(async {
                let sending = {
                    let mut http = self.request(caller, request);
                    upstream_request.inject(http.headers_mut());
                    self.transport.get().unary[connection_group].execute(http)
                };
                let mut response = sending
                    .await
                    .map_err(|error| failure::lost(&error, idempotency))?;
                upstream_request.answered(response.status());
                id = answer::request_id(response.headers()).map(str::to_owned);
                let reading = self.reading(caller, request, sent);
                answer::read::<M>(&mut response, Bytes::new(), &reading).await
            });
            tokio::time::timeout(self.answer_timeout, asking).await
        };
        permit.over();
        let answer =
            answer.unwrap_or_else(|_| Err(failure::timed_out(self.answer_timeout, idempotency)));
        upstream_request.ended(&answer);
        if let Some(run) = answer
            .as_ref()
            .ok()
            .and_then(|answer: &Answer<M>| answer.message.run())
        {
            self.telemetry.saw(run);
            caller.call.saw(run);
        }
        caller.call.answered(id.as_deref());
        caller.answered(answer.as_ref().err());
        if let Some(isolation) = &self.isolation {
            isolation.answered(request, answer.as_ref().err());
        }
        answer.map_err(|error| error.of_request(id))
    }

    /// How the answer to a request that was sent then is read.
    pub(super) fn reading<'a>(
        &'a self,
        caller: &'a Caller,
        request: &'a Allowed,
        sent: Instant,
    ) -> Reading<'a> {
        let until = sent + self.answer_timeout;
        Reading {
            target: &request.target,
            idempotency: request.idempotency,
            own_key: self.own_key,
            secrets: &self.secrets,
            is_read: request.method == Method::GET,
            shows_marks: request.shows_marks,
            limit: self.max_answer_bytes,
            held: &caller.held,
            until: caller
                .deadline
                .map_or(until, |deadline| deadline.min(until)),
        }
    }

    /// Notes an attempt at a request, in its call and in telemetry.
    pub(super) fn note(&self, caller: &Caller, request: &Request, attempt: u32) -> UpstreamRequest {
        let target = &request.target;
        caller
            .call
            .about(target.id("thread_id"), target.id("run_id"));
        let (method, route) = (&request.method, target.route);
        self.telemetry
            .upstream_request(&caller.call, method, route, attempt)
    }

    pub(super) fn request(&self, caller: &Caller, request: &Request) -> reqwest::Request {
        let mut http = reqwest::Request::new(
            request.method.clone(),
            self.base.url(&request.target.path, &request.query),
        );
        http.headers_mut().clone_from(&caller.headers);
        if let Some((name, key)) = &self.key {
            let key = HeaderValue::clone(&key.get());
            http.headers_mut().insert(name.clone(), key);
        }
        if let Some(key) = &request.idempotency_key {
            http.headers_mut()
                .entry(IDEMPOTENCY_KEY)
                .or_insert_with(|| key.clone());
        }
        if let Some(body) = request.body.clone() {
            http.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            *http.body_mut() = Some(body.into());
        } else if http.method() == Method::POST {
            // Left out otherwise, and some servers answer 411 to a POST that does not say how long
            // it is.
            http.headers_mut()
                .insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        http
    }
}
