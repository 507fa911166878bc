//! The caller's side of a conversation, for services in Rust: functions for the tools, one call for
//! the whole run.
//!
//! ```no_run
//! use runs_gateway::{
//!     conversation::Conversation,
//!     v1::{ConverseStart, RunSpec, run_service_client::RunServiceClient},
//! };
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = RunServiceClient::connect("http://127.0.0.1:50051").await?;
//! let mut conversation = Conversation::new(client).tool("get_weather", |arguments| async move {
//!     format!("It is sunny for {arguments}.")
//! });
//! conversation.metadata.insert("authorization", "Bearer my-key".parse()?);
//! let spec = RunSpec { assistant_id: "asst_1".to_owned(), ..RunSpec::default() };
//! let start = ConverseStart { thread_id: "thread_1".to_owned(), run: Some(spec), ..ConverseStart::default() };
//! let run = conversation.start(start, |event| println!("{:?}", event.r#type())).await?;
//! println!("{:?}", run.status());
//! # Ok(())
//! # }
//! ```
//!
//! Must hold: no run is created twice: what breaks is taken up by `attach`, or, where no run is
//! known, told. The functions of one round run side by side, each once, however often the stream
//! breaks meanwhile; its outputs are sent again until the run goes on.

use std::{collections::HashMap, fmt, pin::Pin, time::Duration};

use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Status, metadata::MetadataMap, transport::Channel};
use tonic_types::StatusExt as _;

use crate::v1::{
    ConverseAttach, ConverseRunRequest, ConverseStart, Run, RunEvent, RunStatus, ToolOutput,
    ToolOutputs, converse_run_request::Message, run_event::Payload,
    run_service_client::RunServiceClient,
};

/// The pause before it is taken up the first time; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(5);

type Tool = Box<dyn Fn(String) -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// What conversations need: a gateway, and functions for the tools.
pub struct Conversation {
    client: RunServiceClient<Channel>,
    tools: HashMap<String, Tool>,
    /// Metadata of every call.
    pub metadata: MetadataMap,
    /// How often a conversation that broke is taken up again, at most. At first 8.
    pub resumes: u32,
}

impl Conversation {
    /// Conversations through `client`, without tools.
    pub fn new(client: RunServiceClient<Channel>) -> Self {
        Self {
            client,
            tools: HashMap::new(),
            metadata: MetadataMap::new(),
            resumes: 8,
        }
    }

    /// Answers calls of the tool `name` by `function`, which takes the arguments as JSON text. The
    /// run decides whether to offer the tool. A call of a tool that has no function is answered
    /// with words that say so.
    #[must_use]
    pub fn tool<F, O>(mut self, name: impl Into<String>, function: F) -> Self
    where
        F: Fn(String) -> O + Send + Sync + 'static,
        O: Future<Output = String> + Send + 'static,
    {
        self.tools.insert(
            name.into(),
            Box::new(move |arguments| Box::pin(function(arguments))),
        );
        self
    }

    /// Creates a run and holds its conversation to the end, which the returned state tells. `heed`
    /// gets all events.
    pub async fn start(
        &self,
        start: ConverseStart,
        heed: impl FnMut(RunEvent),
    ) -> Result<Run, Status> {
        let attach = ConverseAttach {
            options: start.options,
            ..ConverseAttach::default()
        };
        self.hold(Message::Start(start), attach, heed).await
    }

    /// Takes up a run that is there, and holds its conversation to the end. `heed` gets all events
    /// from now on.
    pub async fn attach(
        &self,
        attach: ConverseAttach,
        heed: impl FnMut(RunEvent),
    ) -> Result<Run, Status> {
        self.hold(Message::Attach(attach.clone()), attach, heed)
            .await
    }

    async fn hold(
        &self,
        first: Message,
        attach: ConverseAttach,
        mut heed: impl FnMut(RunEvent),
    ) -> Result<Run, Status> {
        let mut talk = Session {
            with: self,
            attach,
            run: None,
            asked: Vec::new(),
            outputs: HashMap::new(),
            working: JoinSet::new(),
        };
        let mut message = first;
        let mut resumes = 0;
        loop {
            let broken = match talk.listen(message, &mut heed).await {
                Ok(run) => return Ok(run),
                Err(status) => status,
            };
            talk.learn_run(&broken);
            if talk.attach.run_id.is_empty() || resumes == self.resumes || !is_interruption(&broken)
            {
                return Err(broken);
            }
            let asked = broken
                .get_details_retry_info()
                .and_then(|info| info.retry_delay);
            sleep(asked.unwrap_or((FIRST_PAUSE * 2_u32.saturating_pow(resumes)).min(MAX_PAUSE)))
                .await;
            resumes += 1;
            message = Message::Attach(talk.attach.clone());
        }
    }
}

impl fmt::Debug for Conversation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Conversation")
            .field("tools", &self.tools.keys())
            .finish_non_exhaustive()
    }
}

/// Whether the run may well go on.
fn is_interruption(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Aborted
    ) || status.get_details_retry_info().is_some()
}

/// One conversation, on as many streams as it takes.
struct Session<'a> {
    with: &'a Conversation,
    /// What takes it up again, once the run is known.
    attach: ConverseAttach,
    run: Option<Run>,
    /// The ids of the calls that the run waits for.
    asked: Vec<String>,
    /// What the functions of this round gave; `None` while they work.
    outputs: HashMap<String, Option<String>>,
    working: JoinSet<(String, String)>,
}

impl Session<'_> {
    /// Converses until the stream ends.
    async fn listen(
        &mut self,
        first: Message,
        heed: &mut impl FnMut(RunEvent),
    ) -> Result<Run, Status> {
        // What waits in it is bounded by the calls that the run asked for.
        let (say, said) = mpsc::unbounded_channel();
        let say = |message| {
            _ = say.send(ConverseRunRequest {
                message: Some(message),
            });
        };
        say(first);
        let mut request = Request::new(UnboundedReceiverStream::new(said));
        request.metadata_mut().clone_from(&self.with.metadata);
        let mut events = self
            .with
            .client
            .clone()
            .converse_run(request)
            .await?
            .into_inner();
        self.asked.clear();
        loop {
            tokio::select! {
                event = events.message() => {
                    let Some(event) = event? else { break };
                    let run = match &event.payload {
                        Some(Payload::Run(run)) => Some(run.clone()),
                        _ => None,
                    };
                    // First: functions work at the same time, and are called because of it.
                    heed(event);
                    if let Some(run) = run {
                        self.turn(*run);
                        self.asked.iter().filter_map(|id| self.answer(id)).for_each(say);
                    }
                }
                Some(done) = self.working.join_next() => {
                    // Nothing aborts it but the end of the conversation.
                    let (id, output) = done.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
                    self.outputs.insert(id.clone(), Some(output));
                    if self.asked.contains(&id) {
                        self.answer(&id).into_iter().for_each(say);
                    }
                }
            }
        }
        self.run
            .clone()
            .ok_or_else(|| Status::internal("the conversation ended without a run"))
    }

    /// The run is in this state now.
    fn turn(&mut self, run: Run) {
        (self.attach.thread_id, self.attach.run_id) = (run.thread_id.clone(), run.id.clone());
        let action = run
            .required_action
            .as_ref()
            .filter(|_| run.status() == RunStatus::RequiresAction);
        let calls = action
            .and_then(|action| action.submit_tool_outputs.as_ref())
            .map(|action| &*action.tool_calls);
        self.asked = calls
            .into_iter()
            .flatten()
            .map(|call| call.id.clone())
            .collect();
        // Those of a round that is over are needed no more.
        self.outputs.retain(|id, _| self.asked.contains(id));
        for call in calls.into_iter().flatten() {
            if self.outputs.contains_key(&call.id) {
                continue;
            }
            let function = call.function.clone().unwrap_or_default();
            let output = if let Some(tool) = self.with.tools.get(&function.name) {
                let (id, output) = (
                    call.id.clone(),
                    tool(function.arguments.unwrap_or_default()),
                );
                self.working.spawn(async move { (id, output.await) });
                None
            } else {
                Some(format!("There is no tool {:?}.", function.name))
            };
            self.outputs.insert(call.id.clone(), output);
        }
        self.run = Some(run);
    }

    fn answer(&self, id: &str) -> Option<Message> {
        let output = self.outputs.get(id)?.clone()?;
        let output = ToolOutput {
            tool_call_id: id.to_owned(),
            output: Some(output),
            ..ToolOutput::default()
        };
        Some(Message::ToolOutputs(ToolOutputs {
            tool_outputs: vec![output],
            ..ToolOutputs::default()
        }))
    }

    /// An error may name the run before any event has.
    fn learn_run(&mut self, status: &Status) {
        let Some(info) = status.get_details_error_info() else {
            return;
        };
        if let (Some(thread_id), Some(run_id)) =
            (info.metadata.get("thread_id"), info.metadata.get("run_id"))
        {
            (self.attach.thread_id, self.attach.run_id) = (thread_id.clone(), run_id.clone());
        }
    }
}
