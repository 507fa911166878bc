//! Creates that are marked, and how what they made is found again.
//!
//! Must hold: a marked create is one request to the upstream, repeated only if the upstream cannot
//! have done it. Whoever makes it looks ([`Client::find`]) before and after; this file decides
//! nothing. What is found is the newest resource with the mark, among so many ([`MAX_PAGES`]) of
//! the last day.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, Method};
use prost_types::Timestamp;

use super::{
    answer::Answer,
    answerable::Answerable,
    caller::Caller,
    client::Client,
    create_mark::CreateMark,
    marks::{self, Marked},
    request::{Request, RestCall},
    stream::UpstreamReply,
    target::Query,
};
use crate::{
    error::{Error, Idempotency, Resume},
    v1::{
        Assistant, CreateAssistantRequest, CreateMessageRequest, CreateRunRequest,
        CreateThreadAndRunRequest, CreateThreadRequest, ListAssistantsResponse,
        ListMessagesResponse, ListRunsResponse, Run, SortOrder, StreamCreateRunRequest,
        StreamCreateThreadAndRunRequest, ThreadMessage, ThreadResource,
    },
};

/// The first page, and then the longest that services give.
const PAGE_LENGTHS: [i32; 2] = [20, 100];

/// The most pages that are looked at.
const MAX_PAGES: usize = 6;

/// What is older was made by nobody who repeats a create now.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// A create whose resource can be marked.
#[expect(private_bounds, reason = "only this module knows REST requests")]
pub trait MarkedCreate: RestCall + Sync {}

impl MarkedCreate for CreateRunRequest {}
impl MarkedCreate for StreamCreateRunRequest {}
impl MarkedCreate for CreateThreadAndRunRequest {}
impl MarkedCreate for StreamCreateThreadAndRunRequest {}
impl MarkedCreate for CreateMessageRequest {}
impl MarkedCreate for CreateAssistantRequest {}

/// A resource that can be looked for by its mark.
#[expect(private_bounds, reason = "only this module knows REST requests")]
pub trait Findable: Listed + Send {}

/// A resource of which there is a list.
trait Listed: Marked {
    /// A page of the list.
    type Page: Answerable + Send;

    /// The list, on this thread if they are on one.
    fn list(thread_id: &str) -> Result<Request, Error>;

    /// What is on a page, and whether there are more pages.
    fn entries(page: Self::Page) -> (Vec<Self>, Option<bool>);

    /// Its id and when it was made.
    fn facts(&self) -> (&str, Option<&Timestamp>);
}

/// Implements [`Findable`] for what is listed on a route.
macro_rules! findable {
    ($($resource:ident, $page:ident, $route:literal, [$($id:literal)?];)*) => {$(
        impl Findable for $resource {}

        impl Listed for $resource {
            type Page = $page;

            fn list(_thread_id: &str) -> Result<Request, Error> {
                Request::new(Method::GET, $route, &[$(($id, _thread_id))?], Idempotency::Idempotent)
            }

            fn entries(page: $page) -> (Vec<Self>, Option<bool>) {
                (page.data, page.has_more)
            }

            fn facts(&self) -> (&str, Option<&Timestamp>) {
                (&self.id, self.created_at.as_ref())
            }
        }
    )*};
}

findable! {
    Run, ListRunsResponse, "/threads/{thread_id}/runs", ["thread_id"];
    ThreadMessage, ListMessagesResponse, "/threads/{thread_id}/messages", ["thread_id"];
    Assistant, ListAssistantsResponse, "/assistants", [];
}

impl Client {
    /// The mark of a create, which is checked: nothing is wrong with what it asks for. `rpc` is
    /// whose `request_id` it is.
    pub fn create_mark<C: MarkedCreate>(
        &self,
        caller: &Caller,
        rpc: &str,
        request_id: &str,
        create: &C,
    ) -> Result<CreateMark, Error> {
        let request = create.request()?;
        let mark = CreateMark::of(caller, rpc, request_id, &request)?;
        request.marked(&mark.to_string())?;
        Ok(mark)
    }

    /// The same for a create of what cannot be marked: what tells its repeats.
    pub fn thread_mark(
        &self,
        caller: &Caller,
        request_id: &str,
        create: &CreateThreadRequest,
    ) -> Result<CreateMark, Error> {
        CreateMark::of(caller, "CreateThread", request_id, &create.request()?)
    }

    /// Creates what is then marked, or says why not: it may have been made nevertheless.
    #[expect(private_bounds, reason = "only this module knows REST requests")]
    pub async fn create_marked<C: MarkedCreate, M: Answerable>(
        &self,
        caller: &Caller,
        create: &C,
        mark: &CreateMark,
    ) -> Result<Answer<M>, Error> {
        let request = create.request()?.marked(&mark.to_string())?;
        let request = &self.allow(caller, request).await?;
        let attempt = |number| async move {
            let sent = self.send_once(caller, request, number).await;
            sent.map_err(Error::never_repeated)
        };
        self.retry.run(caller, attempt).await
    }

    /// The same with `stream`.
    pub async fn stream_create_marked<C: MarkedCreate>(
        &self,
        caller: &Caller,
        create: &C,
        mark: &CreateMark,
    ) -> Result<UpstreamReply, Error> {
        let request = create.request()?.marked(&mark.to_string())?;
        let request = &self.allow(caller, request).await?;
        let attempt = |number| async move {
            let opened = self.open_once(caller, request, number).await;
            opened.map_err(Error::never_repeated)
        };
        self.retry.run(caller, attempt).await.map(Into::into)
    }

    /// Creates a thread that may be created twice: nobody but this call will use it, and of a
    /// create whose answer was lost only an unused thread is left.
    pub async fn create_spare_thread(
        &self,
        caller: &Caller,
        create: &CreateThreadRequest,
    ) -> Result<Answer<ThreadResource>, Error> {
        let mut request = create.request()?;
        request.idempotency = Idempotency::Idempotent;
        self.send(caller, request).await
    }

    /// Looks for what a create has made, on this thread if it is on one: the newest first.
    ///
    /// # Errors
    ///
    /// [`Error::RequestIdUsed`] if another request has made something under the same `request_id`;
    /// otherwise why it is not known.
    pub async fn find<M: Findable>(
        &self,
        caller: &Caller,
        thread_id: &str,
        mark: &CreateMark,
    ) -> Result<Option<Answer<M>>, Error> {
        let mut after = String::new();
        for page in 0..MAX_PAGES {
            let length = PAGE_LENGTHS[page.min(1)];
            let query = Query::default()
                .limit(Some(length))?
                .order(SortOrder::Desc.into())?
                .text("after", &after)?;
            let request = M::list(thread_id)?.query(query).showing_marks();
            let Answer { message, headers } = self.send::<M::Page>(caller, request).await?;
            let (entries, has_more) = M::entries(*message);
            let has_more = has_more.unwrap_or(entries.len() >= length.unsigned_abs() as usize);
            for mut entry in entries {
                if let Some(found) = entry.mark(marks::REQUEST_ID)
                    && mark.is(&found)?
                {
                    entry.unmark();
                    return Ok(Some(found_answer(entry, headers)));
                }
                let (id, created_at) = entry.facts();
                if created_at.is_some_and(is_old) {
                    return Ok(None);
                }
                id.clone_into(&mut after);
            }
            if !has_more || after.is_empty() {
                break;
            }
        }
        Ok(None)
    }

    /// Sends a modification. If it replaces the metadata, the mark that is there goes with the new
    /// ones.
    pub(super) async fn send_modification<M: Marked>(
        &self,
        caller: &Caller,
        mut modification: Request,
    ) -> Result<Answer<M>, Error> {
        if modification.names("metadata") {
            let read = modification.read_before().showing_marks();
            let mark = match self.send::<M>(caller, read).await {
                Ok(there) => there.message.mark(marks::REQUEST_ID),
                // What cannot be read has no mark that this gateway made.
                Err(Error::Unusable { .. }) => None,
                Err(error) => return Err(error),
            };
            if let Some(mark) = mark {
                modification = modification.marked(&mark)?;
            }
        }
        self.send(caller, modification).await
    }
}

fn found_answer<M>(message: M, headers: HeaderMap) -> Answer<M> {
    Answer {
        message: Box::new(message),
        headers,
    }
}

fn is_old(created_at: &Timestamp) -> bool {
    let created_at = SystemTime::try_from(*created_at).unwrap_or(SystemTime::UNIX_EPOCH);
    // A clock that goes wrong makes it look further, not less far.
    created_at.elapsed().is_ok_and(|age| age > MAX_AGE)
}

impl Request {
    /// The same request with a mark in its body's metadata.
    fn marked(mut self, mark: &str) -> Result<Self, Error> {
        let body = self.body.as_deref().unwrap_or(b"{}");
        let marked = marks::put(body, true, marks::REQUEST_ID, mark);
        let marked = marked.map_err(|error| error.within(self.body_field))?;
        self.body = Some(marked.into_bytes().into());
        Ok(self)
    }
}

impl Error {
    /// The same error, which is no ground for the retry loop to repeat a create that may have been
    /// done: whoever makes it looks first.
    fn never_repeated(mut self) -> Self {
        let may_be_done = self.may_have_taken_effect();
        if let Self::Rejected(rejection) = &mut self
            && may_be_done
        {
            rejection.should_retry = Some(false);
        }
        self
    }

    /// Whether a create that failed so may have made something: what it made can then be found.
    pub fn may_have_created(&self) -> bool {
        self.outcome_unknown() || matches!(self, Self::Unusable { .. })
    }

    /// The same error of several callers.
    pub fn shared(error: Arc<Self>) -> Self {
        Self::Interrupted {
            error,
            resume: Resume::default(),
        }
    }
}
