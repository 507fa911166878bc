//! Before a request is sent: whether its caller may make it.

use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use super::{
    Allowed, Isolation, IsolationRules, Kind, NAMELESS,
    marking::{Change, put_mark},
    memory::{Reading, Verdict, lock},
    not_found,
};
use crate::{
    error::{Error, Idempotency},
    upstream::{
        caller::{Caller, IDEMPOTENCY_KEY},
        caller_mark::CallerMark,
        client::Client,
        marks::{self, Marked},
        request::Request,
    },
    v1::{Assistant, ThreadResource},
};

impl Client {
    /// The same client, which isolates callers from each other. Without it, all callers may use
    /// all that the gateway's key may use.
    #[must_use]
    pub fn isolating(mut self, rules: IsolationRules) -> Self {
        self.isolation = Some(Arc::new(Isolation::new(rules)));
        self
    }

    /// The mark of what the caller of this name makes; `None` if callers are not isolated, or have
    /// no name.
    pub fn caller_mark(&self, name: Option<&str>) -> Option<CallerMark> {
        self.isolation.as_ref()?.mark(name?)
    }

    /// What may be sent of a request, once it is known that its caller may make it.
    pub(in crate::upstream) async fn allow(
        &self,
        caller: &Caller,
        mut request: Request,
    ) -> Result<Allowed, Error> {
        if let Some(isolation) = &self.isolation {
            // Apart, since nothing is waited for as a rule, and the caller's future would hold it.
            Box::pin(isolation.allow(self, caller, &mut request)).await?;
        }
        Ok(Allowed(request))
    }
}

impl Isolation {
    /// Refuses what a caller may not ask for, and marks what it makes or changes.
    async fn allow(
        &self,
        client: &Client,
        caller: &Caller,
        request: &mut Request,
    ) -> Result<(), Error> {
        let mark = caller.mark.ok_or(Error::NotAdmitted { what: NAMELESS })?;
        let change = self.changes(request);
        let marked = match (&change, request.body.as_deref()) {
            (Some((_, change)), Some(body)) => {
                let marked = put_mark(body, *change, &mark);
                Some(marked.map_err(|refused| refused.within(request.body_field))?)
            }
            _ => None,
        };
        let assistant = self.assistant_of_run(request)?;
        let mut own = true;
        for kind in self.kinds() {
            let segment = request.target.id(kind.names().0);
            let segment = match (segment, kind, &assistant) {
                ("", Kind::Assistant, Some(assistant)) => assistant,
                (segment, _, _) => segment,
            };
            if !segment.is_empty() {
                let verdict = self.check(client, caller, &mark, kind, segment).await?;
                own &= verdict == Verdict::Own;
            }
        }
        // What is nobody's stays nobody's.
        if let (Some((_, change)), Some(body)) = (change, marked)
            && (own || change != Change::Old)
        {
            request.body = Some(body.into_bytes().into());
        }
        self.forget_deleted(request);
        Ok(())
    }

    /// A resource of a caller's own, or one that it may use. Reads its mark if it is not
    /// remembered.
    pub(super) async fn check(
        &self,
        client: &Client,
        caller: &Caller,
        mark: &CallerMark,
        kind: Kind,
        segment: &str,
    ) -> Result<Verdict, Error> {
        let path = kind.path(segment);
        let known = || lock(&self.memory).verdict(&path, mark);
        let verdict = if let Some(verdict) = known() {
            verdict
        } else {
            // One reads, and calls that ask for the same meanwhile wait for that.
            let reading = Reading::join(&self.memory, &path, mark);
            let _turn = reading.turn().await;
            match known() {
                Some(verdict) => verdict,
                None => self.read(client, caller, mark, kind, segment).await?,
            }
        };
        if verdict == Verdict::Denied {
            let id = percent_decode_str(segment).decode_utf8_lossy();
            return Err(not_found(kind, &id));
        }
        Ok(verdict)
    }

    async fn read(
        &self,
        client: &Client,
        caller: &Caller,
        mark: &CallerMark,
        kind: Kind,
        segment: &str,
    ) -> Result<Verdict, Error> {
        let path = kind.path(segment);
        let deletions = lock(&self.memory).deletions;
        let id = percent_decode_str(segment).decode_utf8_lossy();
        let read = match kind {
            Kind::Thread => read_mark::<ThreadResource>(client, caller, kind, &id).await,
            Kind::Assistant => read_mark::<Assistant>(client, caller, kind, &id).await,
        };
        let verdict = match read {
            Ok(found) => self.judge(mark, found.as_deref()),
            // No id of such a resource, whatever else it is.
            Err(Error::Invalid { .. }) => Verdict::Denied,
            Err(error) if error.is_not_found() => Verdict::Denied,
            Err(error) => return Err(error),
        };
        let age = self.rules.max_age;
        lock(&self.memory).remember(&path, *mark, verdict, age, deletions);
        Ok(verdict)
    }
}

/// Reads whose a resource is.
async fn read_mark<M: Marked>(
    client: &Client,
    caller: &Caller,
    kind: Kind,
    id: &str,
) -> Result<Option<String>, Error> {
    let (name, one, _) = kind.names();
    let read = Request::new(Method::GET, one, &[(name, id)], Idempotency::Idempotent)?;
    let read = Allowed(read.showing_marks());
    // The caller's key is that of its own request.
    let mut caller = caller.clone();
    caller.headers.remove(IDEMPOTENCY_KEY);
    let answer = client.send_allowed::<M>(&caller, &read).await?;
    Ok(answer.message.mark(marks::CALLER))
}
