//! `ResumeRun`: the events of a run after a position, then those that come.

use http::HeaderMap;

use super::{
    Options, Started, Streams,
    delivery::Delivery,
    heartbeat::with_heartbeat,
    progress::{Progress, SharedResume},
};
use crate::{error::Error, upstream::Caller, v1::ResumeRunRequest};

impl Streams {
    /// The events of a run after a position, until it is terminal or requires action. `resume` says
    /// at any time how to resume. When `leave` is ready the stream ends, to be resumed elsewhere.
    pub async fn resume_run(
        &self,
        caller: Caller,
        request: &ResumeRunRequest,
        resume: SharedResume,
        leave: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Started, Error> {
        let options = Options::of_reading(request.options.as_ref())?;
        for (field, id) in [
            ("thread_id", &request.thread_id),
            ("run_id", &request.run_id),
        ] {
            if id.is_empty() {
                return Err(Error::invalid(field, "must be set"));
            }
        }
        let progress = Progress::new(resume, &request.thread_id, &request.run_id);
        let position = ("after_position", &*request.after_position);
        let delivery = Delivery::after(self, caller, progress, options, position).await?;
        Ok(Started {
            headers: HeaderMap::new(),
            events: with_heartbeat(delivery.events(leave), options.heartbeat),
        })
    }
}
