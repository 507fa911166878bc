//! The list of assistants that a caller may use.

use super::{Allowed, Isolation, Kind, NAMELESS, memory::Verdict};
use crate::{
    error::Error,
    shares::Limit,
    upstream::{
        answer::Answer,
        caller::Caller,
        client::Client,
        marks::{self, Marked},
        request::RestCall,
        target,
    },
    v1::{Assistant, ListAssistantsRequest, ListAssistantsResponse},
};

/// The most pages of assistants that are looked through for one page of a caller's own.
const MAX_PAGES: usize = 100;

/// The longest page of assistants, and the one that services give unasked.
const LONG_PAGE: i32 = 100;
const DEFAULT_PAGE: i32 = 20;

impl Client {
    /// `GET /assistants`
    pub async fn list_assistants(
        &self,
        caller: &Caller,
        request: &ListAssistantsRequest,
    ) -> Result<Answer<ListAssistantsResponse>, Error> {
        match &self.isolation {
            Some(isolation) if isolation.rules.assistants => {
                Box::pin(isolation.list_assistants(self, caller, request)).await
            }
            _ => self.send(caller, request.request()?).await,
        }
    }
}

impl Isolation {
    /// A page of the assistants that a caller may use. The upstream's pages are looked through, a
    /// hundred at most.
    async fn list_assistants(
        &self,
        client: &Client,
        caller: &Caller,
        request: &ListAssistantsRequest,
    ) -> Result<Answer<ListAssistantsResponse>, Error> {
        // What is wrong with the request is said of the caller's own.
        request.request()?;
        let mark = caller.mark.ok_or(Error::NotAdmitted { what: NAMELESS })?;
        for (field, id) in [("after", &request.after), ("before", &request.before)] {
            if !id.is_empty() {
                let ids = [("assistant_id", id.as_str())];
                let target = target::target("/assistants/{assistant_id}", &ids);
                let target = target.map_err(|_| Error::invalid(field, "is not an id"))?;
                let segment = target.id("assistant_id");
                self.check(client, caller, &mark, Kind::Assistant, segment)
                    .await?;
            }
        }
        let wanted = usize::try_from(request.limit.unwrap_or(DEFAULT_PAGE)).unwrap_or_default();
        let backwards = request.after.is_empty() && !request.before.is_empty();
        let mut page_request = ListAssistantsRequest {
            limit: Some(LONG_PAGE),
            ..request.clone()
        };
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = Allowed(page_request.request()?.showing_marks());
            let Answer {
                message: mut page,
                headers,
            } = client
                .send_allowed::<ListAssistantsResponse>(caller, &page)
                .await?;
            let mut data = std::mem::take(&mut page.data);
            if backwards {
                data.reverse();
            }
            let last = data.last().map(|assistant| assistant.id.clone());
            let is_own = |it: &Assistant| {
                self.judge(&mark, it.mark(marks::CALLER).as_deref()) != Verdict::Denied
            };
            found.extend(data.into_iter().filter(is_own));
            let has_more = page.has_more.unwrap_or_default() && last.is_some();
            if found.len() > wanted || !has_more {
                page.has_more = Some(found.len() > wanted);
                found.truncate(wanted);
                if backwards {
                    found.reverse();
                }
                found.iter_mut().for_each(Marked::unmark);
                let id = |it: Option<&Assistant>| it.map(|it| it.id.clone()).unwrap_or_default();
                page.first_id = id(found.first());
                page.last_id = id(found.last());
                page.data = found;
                return Ok(Answer {
                    message: page,
                    headers,
                });
            }
            let cursor = if backwards {
                &mut page_request.before
            } else {
                &mut page_request.after
            };
            *cursor = last.unwrap_or_default();
        }
        Err(Error::Overloaded(Limit {
            what: "pages of assistants to look through",
            max: MAX_PAGES,
            flag: "--isolate-assistants",
        }))
    }
}
