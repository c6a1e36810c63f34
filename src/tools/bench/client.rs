//! What a client says before and after the traffic: log-in, declarations, farewell (AMQP 0-9-1 sections 1.4 to 1.7).

use std::sync::Arc;

use rustls::ClientConfig;

use super::error::{Error, Result};
use super::link::{CHANNEL, Link};
use super::producer::Names;
use super::url::Target;
use crate::amqp::field_table::{Table, TableWriter, Value};
use crate::amqp::frame::{self, PROTOCOL_HEADER};
use crate::amqp::method::Method;
use crate::amqp::reply_code::ReplyCode;

/// Who the server says it is, such as `RabbitMQ 4.0.5 on Erlang/OTP 27`; what stands in for another keeps its product's
/// name for clients' sake, so that the platform tells them apart.
pub type Server = String;

/// A connection that is logged in and has its channel open, and who serves it.
pub async fn open(target: &Target, tls: &Arc<ClientConfig>) -> Result<(Link, Server)> {
    let mut link = Link::connect(target, tls).await?;
    link.doing = "greeting";
    link.out.extend_from_slice(PROTOCOL_HEADER);
    let server = link.wait(|method| match method {
        Method::ConnectionStart { server_properties, .. } => Some(describe(*server_properties)),
        _ => None,
    });
    let server = server.await?;
    let frame_bytes_max = log_in(&mut link, target).await?;
    tell(
        &mut link,
        &Method::ConnectionTuneOk { channel_max: CHANNEL, frame_max: frame_bytes_max, heartbeat: 0 },
    );
    link.doing = "opening the virtual host";
    let vhost = target.vhost.as_bytes();
    tell(&mut link, &Method::ConnectionOpen { virtual_host: vhost, capabilities: b"", insist: false });
    link.wait(|method| matches!(method, Method::ConnectionOpenOk { .. }).then_some(())).await?;
    link.call("opening a channel", &Method::ChannelOpen { out_of_band: b"" }, (20, 11)).await?;
    Ok((link, server))
}

/// Returns the size of frames that was agreed on.
async fn log_in(link: &mut Link, target: &Target) -> Result<u32> {
    let able = TableWriter::new()
        .entry("authentication_failure_close", Value::Bool(true))
        .entry("basic.nack", Value::Bool(true))
        .entry("connection.blocked", Value::Bool(true))
        .entry("consumer_cancel_notify", Value::Bool(true))
        .entry("publisher_confirms", Value::Bool(true));
    let about = TableWriter::new()
        .entry("product", Value::LongStr(b"sealmq-bench"))
        .entry("version", Value::LongStr(env!("CARGO_PKG_VERSION").as_bytes()))
        .entry("capabilities", Value::Table(able.as_table()));
    let response = format!("\0{}\0{}", target.user, target.password.as_deref().unwrap_or_default());
    link.doing = "logging in";
    tell(
        link,
        &Method::ConnectionStartOk {
            client_properties: about.as_table(),
            mechanism: b"PLAIN",
            response: response.as_bytes(),
            locale: b"en_US",
        },
    );
    let tuned = link.wait(|method| match method {
        Method::ConnectionTune { frame_max, .. } => Some(*frame_max),
        _ => None,
    });
    let refused = |problem| Error::Login { address: target.address(), user: target.user.clone(), problem };
    match tuned.await {
        Ok(offered_bytes) => Ok(link.agree_on_frame_size(offered_bytes)),
        Err(Error::Refused { code, text, .. }) if code == ReplyCode::AccessRefused.code() => {
            Err(refused(text))
        }
        // Old servers only hang up.
        Err(Error::Lost { problem, .. }) => Err(refused(problem)),
        Err(other) => Err(other),
    }
}

/// Appends a method on channel 0.
fn tell(link: &mut Link, method: &Method<'_>) {
    frame::write_method(&mut link.out, 0, method);
}

fn describe(properties: Table<'_>) -> Server {
    let text = |name: &[u8]| match properties.find(name) {
        Some(Value::LongStr(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    let product = format!("{} {}", text(b"product"), text(b"version"));
    match text(b"platform") {
        platform if platform.is_empty() => product.trim().to_owned(),
        platform => format!("{} on {platform}", product.trim()),
    }
}

/// Declares a queue that outlives its connection.
pub async fn declare_queue(link: &mut Link, name: &str, durable: bool, arguments: Table<'_>) -> Result<()> {
    let declare = Method::QueueDeclare {
        ticket: 0,
        queue: name.as_bytes(),
        passive: false,
        durable,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments,
    };
    link.call("declaring a queue", &declare, (50, 11)).await
}

/// Declares an exchange.
pub async fn declare_exchange(link: &mut Link, name: &str, kind: &str, durable: bool) -> Result<()> {
    let declare = Method::ExchangeDeclare {
        ticket: 0,
        exchange: name.as_bytes(),
        kind: kind.as_bytes(),
        passive: false,
        durable,
        auto_delete: false,
        internal: false,
        no_wait: false,
        arguments: Table::default(),
    };
    link.call("declaring an exchange", &declare, (40, 11)).await
}

/// Binds a queue to an exchange.
pub async fn bind(link: &mut Link, queue: &str, exchange: &str, key: &str) -> Result<()> {
    let bind = Method::QueueBind {
        ticket: 0,
        queue: queue.as_bytes(),
        exchange: exchange.as_bytes(),
        routing_key: key.as_bytes(),
        no_wait: false,
        arguments: Table::default(),
    };
    link.call("binding a queue", &bind, (50, 21)).await
}

/// Switches publisher confirms on.
pub async fn select_confirms(link: &mut Link) -> Result<()> {
    link.call("switching confirms on", &Method::ConfirmSelect { no_wait: false }, (85, 11)).await
}

/// Asks for at most this many unacknowledged deliveries of each consumer; 0 is no limit.
pub async fn limit_prefetch(link: &mut Link, count: u16) -> Result<()> {
    let qos = Method::BasicQos { prefetch_size: 0, prefetch_count: count, global: false };
    link.call("setting the prefetch", &qos, (60, 11)).await
}

/// Subscribes without waiting for the answer: deliveries may come before it.
pub fn subscribe(link: &mut Link, queue: &str, no_ack: bool) {
    link.send(&Method::BasicConsume {
        ticket: 0,
        queue: queue.as_bytes(),
        consumer_tag: b"",
        no_local: false,
        no_ack,
        exclusive: false,
        no_wait: false,
        arguments: Table::default(),
    });
}

/// Closes the channel: the broker has read all that was sent before when it answers.
pub async fn close_channel(link: &mut Link) -> Result<()> {
    let close = Method::ChannelClose { reply_code: 200, reply_text: b"", class_id: 0, method_id: 0 };
    link.call("closing the channel", &close, (20, 41)).await
}

/// Says goodbye; what goes wrong here harms nobody.
pub async fn close(mut link: Link) {
    tell(&mut link, &Method::ConnectionClose { reply_code: 200, reply_text: b"", class_id: 0, method_id: 0 });
    let _ = link.wait(|method| matches!(method, Method::ConnectionCloseOk {}).then_some(())).await;
}

/// Deletes queues by name. What is not there is no error.
pub async fn delete_queues(link: &mut Link, names: impl IntoIterator<Item = &String>) -> Result<()> {
    let mut count = 0;
    for queue in names {
        let queue = queue.as_bytes();
        link.send(&Method::QueueDelete {
            ticket: 0,
            queue,
            if_unused: false,
            if_empty: false,
            no_wait: false,
        });
        count += 1;
    }
    link.doing = "deleting queues";
    for _ in 0..count {
        link.wait(|method| matches!(method, Method::QueueDeleteOk { .. }).then_some(())).await?;
    }
    Ok(())
}

/// Deletes the traffic's queues, and exchanges, on a connection of its own. What is not there is no error.
pub async fn delete(target: &Target, tls: &Arc<ClientConfig>, names: &Names) -> Result<()> {
    let (mut link, _) = open(target, tls).await?;
    delete_queues(&mut link, &names.queues).await?;
    let idle = (!names.idle_queues.is_empty()).then_some(&names.idle_exchange);
    for exchange in names.exchange.iter().chain(idle) {
        let exchange = exchange.as_bytes();
        let delete = Method::ExchangeDelete { ticket: 0, exchange, if_unused: false, no_wait: false };
        link.call("deleting an exchange", &delete, (40, 21)).await?;
    }
    close(link).await;
    Ok(())
}
