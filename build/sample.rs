//! What `build/codec.rs` writes for one message, `ToolChoice`: a JSON string (`mode`) or an object
//! (all other fields). For reading only, it is not compiled; the lines that are stand in `OUT_DIR`.
//!
//! Must hold: a test compares the two. After a change of the generator look at `git diff` here:
//! RENEW_SAMPLE=1 cargo test --test codec sample

impl Object for ToolChoice {
    fn field_index(name: &[u8]) -> Option<usize> {
        match name {
            b"type" => Some(0),
            b"function" => Some(1),
            _ => None,
        }
    }
    fn following() -> &'static [AtomicU8] {
        static FOLLOWING: [AtomicU8; 3] = [AtomicU8::new(0), AtomicU8::new(1), AtomicU8::new(2)];
        &FOLLOWING
    }
    fn read(&mut self, field_index: usize, named: bool, value: &mut Cursor<'_>) -> Read<bool> {
        match field_index {
            0 => Ok((named || value.is_led_by("\"type\":")) && read::name::<ToolType>(&mut self.r#type, value)?),
            1 => Ok((named || value.is_led_by("\"function\":")) && read::object(&mut self.function, value)?),
            _ => Ok(false),
        }
    }
    fn write(&self, out: &mut ObjectWriter<'_>) -> Result<(), Violation> {
        out.tag::<ToolType>(self.r#type, &[(3, self.function.is_some())])?;
        out.object("function", self.function.as_ref(), Empty::Omitted)?;
        Ok(())
    }
    fn extra(&self) -> &str {
        &self.extra_json
    }
    fn extra_mut(&mut self) -> &mut String {
        &mut self.extra_json
    }
}

impl Value for ToolChoice {
    fn read_value(&mut self, value: &mut Cursor<'_>) -> Read<bool> {
        let mark = value.mark();
        if read::name::<ToolChoiceMode>(&mut self.mode, value)? {
            return Ok(true);
        }
        value.back(mark);
        read::object_value(self, value)
    }
    fn write_value(&self, out: &mut Writer<'_>) -> Result<(), Violation> {
        if self.mode != 0 {
            return if self.r#type != 0 || self.function.is_some() || !self.extra_json.is_empty() { Err(Violation::not_alone("mode")) } else { out.bare_name::<ToolChoiceMode>(self.mode) };
        }
        out.object_value(self)
    }
}
