//! What a run in `requires_action` waits for, call by call, and what a submit gives.

use std::collections::HashSet;

use crate::v1::{RequiredToolCall, Run, ToolOutputs};

/// A call that a run waits for, and what it wants of it: what is given to a call is not taken for
/// the other thing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Wanted {
    /// The output of the call of this id.
    Output(String),
    /// The approval of the call of this id.
    Approval(String),
}

impl Wanted {
    /// The id of the call.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Output(id) | Self::Approval(id) => id,
        }
    }
}

impl Run {
    /// What the run waits for, in its order, each once: services may name a call twice, and it
    /// takes one output. Empty for an action that this contract does not know.
    pub(crate) fn wanted(&self) -> Vec<Wanted> {
        let id = |call: &RequiredToolCall| call.id.clone();
        let mut wanted = Vec::new();
        if let Some(action) = &self.required_action {
            let outputs = action.submit_tool_outputs.iter();
            let approvals = action.submit_tool_approval.iter();
            let outputs = outputs.flat_map(|action| &action.tool_calls).map(id);
            let approvals = approvals.flat_map(|action| &action.tool_calls).map(id);
            wanted.extend(outputs.map(Wanted::Output));
            wanted.extend(approvals.map(Wanted::Approval));
        }
        let mut seen = HashSet::new();
        wanted.retain(|call| !call.id().is_empty() && seen.insert(call.clone()));
        wanted
    }
}

impl ToolOutputs {
    /// What is given.
    pub(crate) fn given(&self) -> Vec<Wanted> {
        let outputs = self.tool_outputs.iter().map(|it| it.tool_call_id.clone());
        let approvals = self.tool_approvals.iter().map(|it| it.tool_call_id.clone());
        outputs
            .map(Wanted::Output)
            .chain(approvals.map(Wanted::Approval))
            .collect()
    }
}
