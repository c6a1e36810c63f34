//! A peer's fault: the reply code and text that RabbitMQ answers it with. Operating faults (disk, I/O)
//! are not faults of a peer and have their own types.

use std::borrow::Cow;

use crate::amqp::reply_code::{ReplyCode, Scope};
use crate::limits::REPLY_TEXT_BYTES_MAX;

/// Why a request of a client is refused. The scope comes from the code, unless it is made hard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    code: ReplyCode,
    explanation: Cow<'static, str>,
    scope: Scope,
    /// The explanation holds nothing that a client has sent, but for numbers.
    may_be_logged: bool,
}

impl Fault {
    /// A fault whose code decides whether the channel or the connection closes. An explanation that was put together
    /// is taken to quote the client, and stays out of the log.
    pub fn new(code: ReplyCode, explanation: impl Into<Cow<'static, str>>) -> Fault {
        let explanation = explanation.into();
        let may_be_logged = matches!(explanation, Cow::Borrowed(_));
        Fault { code, explanation, scope: code.scope(), may_be_logged }
    }

    /// As [`Fault::new`], with an explanation that was put together of our own words and numbers.
    pub fn in_numbers(code: ReplyCode, explanation: String) -> Fault {
        Fault { may_be_logged: true, ..Fault::new(code, explanation) }
    }

    /// The same fault, closing the connection whatever its code says (logins, for one).
    pub fn hard(self) -> Fault {
        Fault { scope: Scope::Connection, ..self }
    }

    /// 404 for a queue, in RabbitMQ's words.
    pub fn no_queue(queue: &[u8], vhost: &str) -> Fault {
        Fault::new(ReplyCode::NotFound, format!("no queue '{}' in vhost '{vhost}'", lossy(queue)))
    }

    /// 404 for an exchange, in RabbitMQ's words.
    pub fn no_exchange(exchange: &[u8], vhost: &str) -> Fault {
        Fault::new(ReplyCode::NotFound, format!("no exchange '{}' in vhost '{vhost}'", lossy(exchange)))
    }

    /// 405 for a queue that another connection holds exclusively, in RabbitMQ's words.
    pub fn locked(queue: &[u8], vhost: &str) -> Fault {
        let text = format!(
            "cannot obtain exclusive access to locked queue '{}' in vhost '{vhost}'. It could be originally \
             declared on another connection or the exclusive property value does not match that of the \
             original declaration.",
            lossy(queue)
        );
        Fault::new(ReplyCode::ResourceLocked, text)
    }

    /// 541: the store has failed, nothing can be promised any more.
    pub fn store_failed() -> Fault {
        Fault::new(ReplyCode::InternalError, "the store has failed")
    }

    /// The reply code.
    pub fn code(&self) -> ReplyCode {
        self.code
    }

    /// What it closes.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// What the log says of it: the client's own words, such as names, are only in what the client is told.
    pub fn log_text(&self) -> String {
        if self.may_be_logged { self.reply_text() } else { self.code.name().to_owned() }
    }

    /// `NAME - explanation`; what is longer than the 255 bytes of a short string ends in three dots, as in
    /// RabbitMQ.
    pub fn reply_text(&self) -> String {
        const DOTS: &str = "...";
        let mut text = format!("{} - {}", self.code.name(), self.explanation);
        if text.len() > REPLY_TEXT_BYTES_MAX {
            let kept = REPLY_TEXT_BYTES_MAX - DOTS.len();
            let cut = (0..=kept).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(cut);
            text.push_str(DOTS);
        }
        text
    }
}

/// A name for a text that people read: names are bytes, texts are UTF-8.
pub fn lossy(name: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_texts_read_as_rabbitmqs() {
        let text = Fault::no_queue(b"jobs", "/").reply_text();
        assert_eq!(text, "NOT_FOUND - no queue 'jobs' in vhost '/'");
    }

    /// Names of queues, tags of consumers and names of virtual hosts stood in the log when they were why a connection was
    /// closed.
    #[test]
    fn only_our_own_words_may_be_logged() {
        let text = |fault: Fault| fault.log_text();
        assert_eq!(text(Fault::no_queue(b"secret", "/").hard()), "NOT_FOUND");
        assert_eq!(
            text(Fault::new(ReplyCode::NotAllowed, format!("vhost {} not found", "secret"))),
            "NOT_ALLOWED"
        );
        assert_eq!(text(Fault::store_failed()), "INTERNAL_ERROR - the store has failed");
        assert_eq!(
            text(Fault::in_numbers(ReplyCode::FrameError, format!("{} bytes", 7))),
            "FRAME_ERROR - 7 bytes"
        );
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let text = Fault::new(ReplyCode::NotFound, "\u{e9}".repeat(200)).reply_text();
        assert!(text.len() <= 255 && text.len() >= 253 && text.ends_with("\u{e9}..."), "{text}");
        let text = Fault::new(ReplyCode::NotFound, "q".repeat(255)).reply_text();
        assert!(text.len() == 255 && text.ends_with("q..."), "{text}");
    }
}
