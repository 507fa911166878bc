//! `runs-gateway dev`: all calls for assistants, threads and messages, from a gRPC client to the
//! embedded API and back.

use clap::Parser as _;
use runs_gateway::{
    config::{Cli, Command},
    dev::Dev,
    v1::{
        AssistantSpec, AssistantUpdate, CreateAssistantRequest, CreateMessageRequest,
        CreateRunRequest, CreateThreadRequest, DeleteAssistantRequest, DeleteMessageRequest,
        DeleteThreadRequest, GetAssistantRequest, GetMessageRequest, GetThreadRequest,
        ListAssistantsRequest, ListMessagesRequest, MessageContent, MessageInput, MessageRole,
        MessageUpdate, ModifyAssistantRequest, ModifyMessageRequest, ModifyThreadRequest, RunSpec,
        RunStatus, SortOrder, ThreadSpec, ThreadUpdate, WaitRunRequest,
        assistant_service_client::AssistantServiceClient,
        message_service_client::MessageServiceClient, run_service_client::RunServiceClient,
        thread_service_client::ThreadServiceClient,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

/// Gateway and embedded API, and a connection.
async fn start() -> (Dev, Channel) {
    let cli = Cli::try_parse_from([
        "runs-gateway",
        "dev",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ]);
    let Command::Dev(args) = cli.unwrap_or_else(|error| panic!("{error}")).command else {
        unreachable!("the command is dev")
    };
    let config = (*args).try_into().expect("it can be run");
    let dev = Dev::start(config, CancellationToken::new()).await;
    let dev = dev.expect("it starts");
    let channel = Endpoint::from_shared(format!("http://{}", dev.grpc)).expect("a URL");
    (dev, channel.connect_lazy())
}

fn pairs(value: &str) -> std::collections::BTreeMap<String, String> {
    [("k".to_owned(), value.to_owned())].into()
}

fn said(text: &str) -> MessageInput {
    MessageInput {
        role: MessageRole::User.into(),
        content: Some(MessageContent {
            text: Some(text.to_owned()),
            parts: Vec::new(),
        }),
        ..MessageInput::default()
    }
}

/// What is gone is told so.
fn assert_gone<M: std::fmt::Debug>(answer: Result<Response<M>, Status>, what: &str) {
    let status = answer.expect_err(what);
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!(
        (status.code(), &*info.reason),
        (Code::NotFound, "NOT_FOUND"),
        "{what}: {status}"
    );
}

#[tokio::test]
async fn an_assistant_is_made_read_listed_changed_and_deleted() {
    let (dev, channel) = start().await;
    let mut assistants = AssistantServiceClient::new(channel);
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        let assistant = AssistantSpec {
            model: "m".to_owned(),
            name: Some(name.to_owned()),
            metadata: pairs(name),
            ..AssistantSpec::default()
        };
        let request = CreateAssistantRequest {
            assistant: Some(assistant),
            ..CreateAssistantRequest::default()
        };
        let made = assistants.create_assistant(request).await.expect("made");
        let made = made.into_inner();
        assert_eq!(
            (made.name.as_deref(), &*made.object),
            (Some(name), "assistant")
        );
        let request = GetAssistantRequest {
            assistant_id: made.id.clone(),
        };
        let read = assistants.get_assistant(request).await.expect("read");
        assert_eq!(read.into_inner(), made);
        ids.push(made.id);
    }

    let (mut listed, mut pages, mut after) = (Vec::new(), 0, ids[0].clone());
    loop {
        let request = ListAssistantsRequest {
            limit: Some(2),
            order: SortOrder::Asc.into(),
            after,
            before: String::new(),
        };
        let page = assistants.list_assistants(request).await.expect("a page");
        let page = page.into_inner();
        assert_eq!(page.extra_json, "");
        listed.extend(page.data.into_iter().map(|assistant| assistant.id));
        pages += 1;
        if page.has_more != Some(true) {
            break;
        }
        after = page.last_id;
    }
    assert_eq!((pages, &*listed), (2, &ids[1..]));

    let assistant_id = ids[0].clone();
    let change = ModifyAssistantRequest {
        assistant_id: assistant_id.clone(),
        assistant: Some(AssistantUpdate {
            instructions: Some("Be brief.".to_owned()),
            metadata: pairs("new"),
            ..AssistantUpdate::default()
        }),
    };
    let changed = assistants.modify_assistant(change).await.expect("changed");
    let changed = changed.into_inner();
    assert_eq!(
        (changed.name.as_deref(), changed.instructions.as_deref()),
        (Some("a"), Some("Be brief."))
    );
    assert_eq!(changed.metadata, pairs("new"));

    let delete = DeleteAssistantRequest {
        assistant_id: assistant_id.clone(),
    };
    let gone = assistants.delete_assistant(delete.clone()).await;
    let gone = gone.expect("deleted").into_inner();
    assert_eq!(
        (gone.id, &*gone.object, gone.deleted, &*gone.extra_json),
        (assistant_id.clone(), "assistant.deleted", Some(true), "")
    );
    let get = GetAssistantRequest { assistant_id };
    assert_gone(assistants.get_assistant(get).await, "read after delete");
    assert_gone(assistants.delete_assistant(delete).await, "deleted again");
    dev.end().await;
}

#[tokio::test]
async fn a_thread_and_its_messages_are_made_read_listed_changed_and_deleted() {
    let (dev, channel) = start().await;
    let mut threads = ThreadServiceClient::new(channel.clone());
    let mut messages = MessageServiceClient::new(channel);
    let empty = threads.create_thread(CreateThreadRequest::default()).await;
    assert_ne!(empty.expect("made of nothing").into_inner().id, "");
    let request = CreateThreadRequest {
        thread: Some(ThreadSpec {
            messages: vec![said("first")],
            metadata: pairs("v"),
            ..ThreadSpec::default()
        }),
        ..CreateThreadRequest::default()
    };
    let made = threads.create_thread(request).await.expect("made");
    let made = made.into_inner();
    let thread_id = made.id.clone();
    let get = GetThreadRequest {
        thread_id: thread_id.clone(),
    };
    let read = threads.get_thread(get.clone()).await.expect("read");
    assert_eq!(
        (read.into_inner(), &made.metadata),
        (made.clone(), &pairs("v"))
    );
    let change = ModifyThreadRequest {
        thread_id: thread_id.clone(),
        thread: Some(ThreadUpdate {
            metadata: pairs("new"),
            ..ThreadUpdate::default()
        }),
    };
    let changed = threads.modify_thread(change).await.expect("changed");
    assert_eq!(changed.into_inner().metadata, pairs("new"));

    let mut ids = Vec::new();
    for text in ["second", "third", "fourth", "fifth"] {
        let request = CreateMessageRequest {
            thread_id: thread_id.clone(),
            message: Some(said(text)),
            ..CreateMessageRequest::default()
        };
        let made = messages.create_message(request).await.expect("made");
        let made = made.into_inner();
        let part = made.content[0].text.as_ref().expect("text");
        assert_eq!(part.value.as_deref(), Some(text));
        let request = GetMessageRequest {
            thread_id: thread_id.clone(),
            message_id: made.id.clone(),
        };
        let read = messages.get_message(request).await.expect("read");
        assert_eq!(read.into_inner(), made);
        ids.push(made.id);
    }
    let list = |after: String, run_id: &str| ListMessagesRequest {
        thread_id: thread_id.clone(),
        limit: Some(2),
        order: SortOrder::Asc.into(),
        after,
        before: String::new(),
        run_id: run_id.to_owned(),
    };
    let (mut listed, mut pages, mut after) = (Vec::new(), 0, String::new());
    loop {
        let page = messages.list_messages(list(after, "")).await;
        let page = page.expect("a page").into_inner();
        listed.extend(page.data.into_iter().map(|message| message.id));
        pages += 1;
        if page.has_more != Some(true) {
            break;
        }
        after = page.last_id;
    }
    assert_eq!((pages, &listed[1..]), (3, &*ids));
    let none = messages
        .list_messages(list(String::new(), "run_none"))
        .await;
    assert_eq!(none.expect("a page").into_inner().data, []);

    let message_id = ids[0].clone();
    let change = ModifyMessageRequest {
        thread_id: thread_id.clone(),
        message_id: message_id.clone(),
        message: Some(MessageUpdate {
            metadata: pairs("new"),
            ..MessageUpdate::default()
        }),
    };
    let changed = messages.modify_message(change).await.expect("changed");
    assert_eq!(changed.into_inner().metadata, pairs("new"));
    let delete = DeleteMessageRequest {
        thread_id: thread_id.clone(),
        message_id: message_id.clone(),
    };
    let gone = messages.delete_message(delete.clone()).await;
    let gone = gone.expect("deleted").into_inner();
    assert_eq!(
        (&*gone.id, &*gone.object, gone.deleted),
        (&*message_id, "thread.message.deleted", Some(true))
    );
    let read = GetMessageRequest {
        thread_id: thread_id.clone(),
        message_id,
    };
    assert_gone(messages.get_message(read).await, "read after delete");
    assert_gone(messages.delete_message(delete).await, "deleted again");

    let delete = DeleteThreadRequest {
        thread_id: thread_id.clone(),
    };
    let gone = threads.delete_thread(delete.clone()).await;
    let gone = gone.expect("deleted").into_inner();
    assert_eq!(
        (&*gone.id, &*gone.object, gone.deleted),
        (&*thread_id, "thread.deleted", Some(true))
    );
    assert_gone(threads.get_thread(get).await, "read after delete");
    assert_gone(threads.delete_thread(delete).await, "deleted again");
    let page = messages.list_messages(list(String::new(), "")).await;
    assert_gone(page, "messages of a deleted thread");
    dev.end().await;
}

#[tokio::test]
async fn the_answer_of_a_run_is_read_by_its_id() {
    let (dev, channel) = start().await;
    let mut assistants = AssistantServiceClient::new(channel.clone());
    let mut threads = ThreadServiceClient::new(channel.clone());
    let mut messages = MessageServiceClient::new(channel.clone());
    let mut runs = RunServiceClient::new(channel);
    let assistant = AssistantSpec {
        model: "m".to_owned(),
        ..AssistantSpec::default()
    };
    let request = CreateAssistantRequest {
        assistant: Some(assistant),
        ..CreateAssistantRequest::default()
    };
    let assistant = assistants.create_assistant(request).await.expect("made");
    let thread = threads.create_thread(CreateThreadRequest::default()).await;
    let thread_id = thread.expect("made").into_inner().id;
    let request = CreateMessageRequest {
        thread_id: thread_id.clone(),
        message: Some(said("What is the weather?")),
        ..CreateMessageRequest::default()
    };
    let question = messages.create_message(request).await.expect("made");
    let request = CreateRunRequest {
        thread_id: thread_id.clone(),
        run: Some(RunSpec {
            assistant_id: assistant.into_inner().id,
            ..RunSpec::default()
        }),
        include: Vec::new(),
        ..CreateRunRequest::default()
    };
    let run_id = runs
        .create_run(request)
        .await
        .expect("made")
        .into_inner()
        .id;
    let request = WaitRunRequest {
        thread_id: thread_id.clone(),
        run_id: run_id.clone(),
        ..WaitRunRequest::default()
    };
    let run = runs.wait_run(request).await.expect("it ends").into_inner();
    assert_eq!(run.status(), RunStatus::Completed);
    let mut list = ListMessagesRequest {
        thread_id,
        run_id: run_id.clone(),
        ..ListMessagesRequest::default()
    };
    let answers = messages.list_messages(list.clone()).await.expect("a page");
    let [answer] = &answers.into_inner().data[..] else {
        panic!("not exactly one answer")
    };
    assert_eq!(
        (answer.role(), &answer.run_id),
        (MessageRole::Assistant, &run_id)
    );
    let text = answer.content[0].text.as_ref().expect("text");
    assert_ne!(text.value.as_deref().unwrap_or_default(), "");
    list.run_id.clear();
    let all = messages.list_messages(list).await.expect("a page");
    let all: Vec<_> = all.into_inner().data.into_iter().map(|it| it.id).collect();
    assert_eq!(all, [answer.id.clone(), question.into_inner().id]);
    dev.end().await;
}
