//! The caller's side of a conversation, for services in Rust: functions for the tools, one that
//! approves calls of MCP servers, one call for the whole run.
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
//! breaks meanwhile; its outputs are sent again until the run goes on. No event comes twice of a
//! conversation that is recorded (`options.resumable`). A call that needs an approval is refused
//! unless a function approves it.

use std::{collections::HashMap, fmt, pin::Pin};

use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Status, metadata::MetadataMap, transport::Channel};

use crate::{
    resuming::{is_interruption, pause, run_of},
    v1::{
        ConverseAttach, ConverseRunRequest, ConverseStart, GetRunRequest, RequiredToolCall, Run,
        RunEvent, RunStatus, ToolApproval, ToolOutput, ToolOutputs, converse_run_request::Message,
        run_event::Payload, run_service_client::RunServiceClient,
    },
};

type Function<I, O> = Box<dyn Fn(I) -> Pin<Box<dyn Future<Output = O> + Send>> + Send + Sync>;

/// What conversations need: a gateway, and functions for the tools.
pub struct Conversation {
    client: RunServiceClient<Channel>,
    tools: HashMap<String, Function<String, String>>,
    approve: Option<Function<RequiredToolCall, ToolApproval>>,
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
            approve: None,
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

    /// Answers calls that need an approval by `function`, which takes the call: whether it is
    /// approved, and with which headers. The approval's `tool_call_id` is filled in. Without such a
    /// function all of them are refused.
    #[must_use]
    pub fn approve<F, O>(mut self, function: F) -> Self
    where
        F: Fn(RequiredToolCall) -> O + Send + Sync + 'static,
        O: Future<Output = ToolApproval> + Send + 'static,
    {
        self.approve = Some(Box::new(move |call| Box::pin(function(call))));
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
        self.converse(Message::Start(start), attach, heed).await
    }

    /// Takes up a run that is there, and holds its conversation to the end. `heed` gets all events
    /// from now on.
    pub async fn attach(
        &self,
        attach: ConverseAttach,
        heed: impl FnMut(RunEvent),
    ) -> Result<Run, Status> {
        self.converse(Message::Attach(attach.clone()), attach, heed)
            .await
    }

    async fn converse(
        &self,
        first: Message,
        attach: ConverseAttach,
        mut heed: impl FnMut(RunEvent),
    ) -> Result<Run, Status> {
        let mut talk = Session {
            with: self,
            attach,
            run: None,
            pending: Vec::new(),
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
            sleep(pause(&broken, resumes)).await;
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

/// The calls that the run waits for, each with whether its approval is wanted, not its output.
pub(crate) fn required_calls(run: &Run) -> impl Iterator<Item = (&RequiredToolCall, bool)> {
    let action = run.required_action.as_ref();
    let action = action.filter(|_| run.status() == RunStatus::RequiresAction);
    let outputs = action.and_then(|action| action.submit_tool_outputs.as_ref());
    let approvals = action.and_then(|action| action.submit_tool_approval.as_ref());
    let outputs = outputs.into_iter().flat_map(|action| &action.tool_calls);
    let approvals = approvals.into_iter().flat_map(|action| &action.tool_calls);
    outputs
        .map(|call| (call, false))
        .chain(approvals.map(|call| (call, true)))
}

/// The message that gives the output of one call.
fn output(tool_call_id: String, output: String) -> ToolOutputs {
    ToolOutputs {
        tool_outputs: vec![ToolOutput {
            tool_call_id,
            output: Some(output),
            ..ToolOutput::default()
        }],
        ..ToolOutputs::default()
    }
}

/// The message that gives the approval of one call.
fn approval(tool_call_id: String, approval: ToolApproval) -> ToolOutputs {
    ToolOutputs {
        tool_approvals: vec![ToolApproval {
            tool_call_id,
            ..approval
        }],
        ..ToolOutputs::default()
    }
}

/// One conversation, on as many streams as it takes.
struct Session<'a> {
    with: &'a Conversation,
    /// What takes it up again, once the run is known.
    attach: ConverseAttach,
    run: Option<Run>,
    /// The ids of the calls that the run waits for.
    pending: Vec<String>,
    /// What the functions of this round gave; `None` while they work.
    outputs: HashMap<String, Option<ToolOutputs>>,
    working: JoinSet<(String, ToolOutputs)>,
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
        let pending = std::mem::take(&mut self.pending);
        // Boxed: it is seldom needed, and large.
        if !pending.is_empty() && Box::pin(self.still_asks(&pending)).await? {
            pending
                .iter()
                .filter_map(|id| self.answer(id))
                .for_each(say);
            self.pending = pending;
        }
        loop {
            tokio::select! {
                event = events.message() => {
                    let Some(event) = event? else { break };
                    if !event.position.is_empty() {
                        self.attach.after_position.clone_from(&event.position);
                    }
                    let run = match &event.payload {
                        Some(Payload::Run(run)) => Some(run.clone()),
                        _ => None,
                    };
                    // First: functions work at the same time, and are called because of it.
                    heed(event);
                    if let Some(run) = run {
                        self.turn(*run);
                        self.pending.iter().filter_map(|id| self.answer(id)).for_each(say);
                    }
                }
                Some(done) = self.working.join_next() => {
                    // Nothing aborts it but the end of the conversation.
                    let (id, output) = done.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
                    self.outputs.insert(id.clone(), Some(output));
                    if self.pending.contains(&id) {
                        self.answer(&id).into_iter().for_each(say);
                    }
                }
            }
        }
        self.run
            .clone()
            .ok_or_else(|| Status::internal("the conversation ended without a run"))
    }

    /// The run still waits for these calls, and no event will say so: the one that did was recorded,
    /// and does not come again.
    async fn still_asks(&self, pending: &[String]) -> Result<bool, Status> {
        if self.attach.after_position.is_empty() {
            return Ok(false);
        }
        let mut request = Request::new(GetRunRequest {
            thread_id: self.attach.thread_id.clone(),
            run_id: self.attach.run_id.clone(),
        });
        request.metadata_mut().clone_from(&self.with.metadata);
        let run = self.with.client.clone().get_run(request).await?;
        Ok(required_calls(run.get_ref())
            .map(|(call, _)| &call.id)
            .eq(pending))
    }

    /// The run is in this state now.
    fn turn(&mut self, run: Run) {
        (self.attach.thread_id, self.attach.run_id) = (run.thread_id.clone(), run.id.clone());
        self.pending = required_calls(&run)
            .map(|(call, _)| call.id.clone())
            .collect();
        // Those of a round that is over are needed no more.
        self.outputs.retain(|id, _| self.pending.contains(id));
        for (call, needs_approval) in required_calls(&run) {
            if self.outputs.contains_key(&call.id) {
                continue;
            }
            let given = if needs_approval {
                self.approve(call)
            } else {
                self.call(call)
            };
            self.outputs.insert(call.id.clone(), given);
        }
        self.run = Some(run);
    }

    /// Calls the function of a call's tool; what it gives if there is none.
    fn call(&mut self, call: &RequiredToolCall) -> Option<ToolOutputs> {
        let (id, function) = (call.id.clone(), call.function.clone().unwrap_or_default());
        let Some(tool) = self.with.tools.get(&function.name) else {
            return Some(output(id, format!("There is no tool {:?}.", function.name)));
        };
        let gives = tool(function.arguments.unwrap_or_default());
        self.working
            .spawn(async move { (id.clone(), output(id, gives.await)) });
        None
    }

    /// Asks the function that approves calls; the refusal if there is none.
    fn approve(&mut self, call: &RequiredToolCall) -> Option<ToolOutputs> {
        let id = call.id.clone();
        let Some(approve) = &self.with.approve else {
            let refused = ToolApproval {
                approve: Some(false),
                ..ToolApproval::default()
            };
            return Some(approval(id, refused));
        };
        let gives = approve(call.clone());
        self.working
            .spawn(async move { (id.clone(), approval(id, gives.await)) });
        None
    }

    fn answer(&self, id: &str) -> Option<Message> {
        Some(Message::ToolOutputs(self.outputs.get(id)?.clone()?))
    }

    /// An error may name the run before any event has.
    fn learn_run(&mut self, status: &Status) {
        if let Some((thread_id, run_id)) = run_of(status) {
            (self.attach.thread_id, self.attach.run_id) = (thread_id, run_id);
        }
    }
}
