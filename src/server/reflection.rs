//! Server reflection, v1 and v1alpha: one index of descriptors, and the same answers for both.
//!
//! Must hold: what is asked for and is not there is an `error_response` to that question, and the
//! stream goes on. Files are served as they were compiled, options and comments included.
//!
//! It stands in for tonic-reflection's own services, which end the stream at the first name that
//! they do not know, and know an enum's values by another name than protobuf gives them. The
//! messages are that library's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::Pin,
    sync::Arc,
};

use async_stream::stream;
use bytes::Bytes;
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};

/// What is served, by name.
#[derive(Debug, Default)]
pub(super) struct Index {
    files: BTreeMap<String, Bytes>,
    services: BTreeSet<String>,
    /// The paths of methods, and whether each takes one message and not a stream of them.
    pub(super) one_message: HashMap<String, bool>,
    symbols: HashMap<String, Bytes>,
    /// By the message that is extended, then by number. Every message is there.
    extensions: HashMap<String, BTreeMap<i32, Bytes>>,
}

/// A `FileDescriptorSet` whose files stay as they were written.
#[derive(Clone, PartialEq, prost::Message)]
struct RawSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// Why a question has no answer.
type Refusal = (Code, String);

impl Index {
    /// All files of the sets. The first of two with the same name counts.
    pub(super) fn new(sets: &[&'static [u8]]) -> Result<Self, prost::DecodeError> {
        let mut index = Self::default();
        for set in sets {
            for raw in RawSet::decode(*set)?.file {
                let file = FileDescriptorProto::decode(raw.clone())?;
                if !index.files.contains_key(file.name()) {
                    index.files.insert(file.name().to_owned(), raw.clone());
                    index.add(&file, &raw);
                }
            }
        }
        Ok(index)
    }

    fn add(&mut self, file: &FileDescriptorProto, raw: &Bytes) {
        let package = file.package();
        for message in &file.message_type {
            self.add_message(package, message, raw);
        }
        for r#enum in &file.enum_type {
            self.add_enum(package, r#enum, raw);
        }
        for extension in &file.extension {
            self.add_extension(package, extension, raw);
        }
        for service in &file.service {
            let name = self.add_symbol(package, service.name(), raw);
            for method in &service.method {
                self.add_symbol(&name, method.name(), raw);
                let path = format!("/{name}/{}", method.name());
                self.one_message.insert(path, !method.client_streaming());
            }
            self.services.insert(name);
        }
    }

    fn add_message(&mut self, scope: &str, message: &DescriptorProto, raw: &Bytes) {
        let name = self.add_symbol(scope, message.name(), raw);
        for field in &message.field {
            self.add_symbol(&name, field.name(), raw);
        }
        for oneof in &message.oneof_decl {
            self.add_symbol(&name, oneof.name(), raw);
        }
        for r#enum in &message.enum_type {
            self.add_enum(&name, r#enum, raw);
        }
        for extension in &message.extension {
            self.add_extension(&name, extension, raw);
        }
        for nested in &message.nested_type {
            self.add_message(&name, nested, raw);
        }
        self.extensions.entry(name).or_default();
    }

    /// A value is named beside its enum; some libraries name it within.
    fn add_enum(&mut self, scope: &str, r#enum: &EnumDescriptorProto, raw: &Bytes) {
        let name = self.add_symbol(scope, r#enum.name(), raw);
        for value in &r#enum.value {
            self.add_symbol(scope, value.name(), raw);
            self.add_symbol(&name, value.name(), raw);
        }
    }

    fn add_extension(&mut self, scope: &str, extension: &FieldDescriptorProto, raw: &Bytes) {
        self.add_symbol(scope, extension.name(), raw);
        let extended = plain(extension.extendee()).to_owned();
        let numbers = self.extensions.entry(extended).or_default();
        numbers.insert(extension.number(), raw.clone());
    }

    fn add_symbol(&mut self, scope: &str, name: &str, raw: &Bytes) -> String {
        let name = if scope.is_empty() {
            name.to_owned()
        } else {
            format!("{scope}.{name}")
        };
        self.symbols.insert(name.clone(), raw.clone());
        name
    }

    fn file(&self, name: &str) -> Result<Vec<Vec<u8>>, Refusal> {
        found(self.files.get(name), || format!("no such file: {name}"))
    }

    fn symbol(&self, name: &str) -> Result<Vec<Vec<u8>>, Refusal> {
        let file = self.symbols.get(plain(name));
        found(file, || format!("no such symbol: {name}"))
    }

    fn extension(&self, extended: &str, number: i32) -> Result<Vec<Vec<u8>>, Refusal> {
        let numbers = self.extensions.get(plain(extended));
        found(numbers.and_then(|numbers| numbers.get(&number)), || {
            format!("no such extension: {number} of {extended}")
        })
    }

    fn extension_numbers(&self, extended: &str) -> Result<Vec<i32>, Refusal> {
        let numbers = self.extensions.get(plain(extended));
        let numbers = numbers.map(|numbers| numbers.keys().copied().collect());
        numbers.ok_or_else(|| (Code::NotFound, format!("no such message: {extended}")))
    }
}

fn found(file: Option<&Bytes>, what: impl FnOnce() -> String) -> Result<Vec<Vec<u8>>, Refusal> {
    let file = file.map(|file| vec![file.to_vec()]);
    file.ok_or_else(|| (Code::NotFound, what()))
}

/// A name without the dot that says that it is a whole one.
fn plain(name: &str) -> &str {
    name.strip_prefix('.').unwrap_or(name)
}

/// The service of one version: the two differ in nothing but their package.
macro_rules! version {
    ($version:ident) => {
        pub(super) mod $version {
            use tonic_reflection::pb::$version::{
                self as pb,
                server_reflection_request::MessageRequest as Question,
                server_reflection_response::MessageResponse as Answer,
                server_reflection_server::{ServerReflection, ServerReflectionServer},
            };

            use super::*;

            /// The service.
            #[derive(Debug)]
            pub(in super::super) struct Reflection(Arc<Index>);

            /// The service over `index`.
            pub(in super::super) fn service(
                index: Arc<Index>,
            ) -> ServerReflectionServer<Reflection> {
                ServerReflectionServer::new(Reflection(index))
            }

            #[tonic::async_trait]
            impl ServerReflection for Reflection {
                type ServerReflectionInfoStream = Pin<
                    Box<dyn Stream<Item = Result<pb::ServerReflectionResponse, Status>> + Send>,
                >;

                async fn server_reflection_info(
                    &self,
                    request: Request<Streaming<pb::ServerReflectionRequest>>,
                ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                    let index = Arc::clone(&self.0);
                    let mut questions = request.into_inner();
                    let answers = stream! {
                        while let Some(question) = questions.next().await {
                            yield question.map(|question| respond(&index, question));
                        }
                    };
                    Ok(Response::new(Box::pin(answers)))
                }
            }

            fn respond(
                index: &Index,
                request: pb::ServerReflectionRequest,
            ) -> pb::ServerReflectionResponse {
                let answer = answer(index, request.message_request.as_ref());
                let answer = answer.unwrap_or_else(|(code, message)| {
                    Answer::ErrorResponse(pb::ErrorResponse {
                        error_code: code.into(),
                        error_message: message,
                    })
                });
                pb::ServerReflectionResponse {
                    valid_host: request.host.clone(),
                    original_request: Some(request),
                    message_response: Some(answer),
                }
            }

            fn answer(index: &Index, question: Option<&Question>) -> Result<Answer, Refusal> {
                let files = |file_descriptor_proto| {
                    Answer::FileDescriptorResponse(pb::FileDescriptorResponse {
                        file_descriptor_proto,
                    })
                };
                match question {
                    None => Err((
                        Code::InvalidArgument,
                        "message_request: must be set".to_owned(),
                    )),
                    Some(Question::FileByFilename(name)) => index.file(name).map(files),
                    Some(Question::FileContainingSymbol(name)) => index.symbol(name).map(files),
                    Some(Question::FileContainingExtension(of)) => index
                        .extension(&of.containing_type, of.extension_number)
                        .map(files),
                    Some(Question::AllExtensionNumbersOfType(name)) => {
                        let extension_number = index.extension_numbers(name)?;
                        Ok(Answer::AllExtensionNumbersResponse(
                            pb::ExtensionNumberResponse {
                                base_type_name: plain(name).to_owned(),
                                extension_number,
                            },
                        ))
                    }
                    Some(Question::ListServices(_)) => {
                        let names = index.services.iter().cloned();
                        Ok(Answer::ListServicesResponse(pb::ListServiceResponse {
                            service: names.map(|name| pb::ServiceResponse { name }).collect(),
                        }))
                    }
                }
            }
        }
    };
}

version!(v1);
version!(v1alpha);
