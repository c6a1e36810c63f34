//! Workloads of amqprs: `interop-amqprs CASE`, with AMQP_URL and AMQP_CA. Says ok, or why not.

use std::collections::BTreeSet;
use std::path::PathBuf;

use amqprs::callbacks::ChannelCallback;
use amqprs::channel::*;
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::tls::TlsAdaptor;
use amqprs::{Ack, BasicProperties, Cancel, CloseChannel, Nack, Return};
use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What the broker tells a publisher, in its order.
enum Event {
    Confirmed(Ack),
    Refused,
    Returned(u16, Vec<u8>),
}

struct Listener(UnboundedSender<Event>);

#[async_trait]
impl ChannelCallback for Listener {
    async fn close(&mut self, _: &Channel, _: CloseChannel) -> Result<(), amqprs::error::Error> {
        Ok(())
    }
    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Result<(), amqprs::error::Error> {
        Ok(())
    }
    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, amqprs::error::Error> {
        Ok(active)
    }
    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        let _ = self.0.send(Event::Confirmed(ack));
    }
    async fn publish_nack(&mut self, _: &Channel, _: Nack) {
        let _ = self.0.send(Event::Refused);
    }
    async fn publish_return(&mut self, _: &Channel, returned: Return, _: BasicProperties, content: Vec<u8>) {
        let _ = self.0.send(Event::Returned(returned.reply_code(), content));
    }
}

async fn connect() -> Result<Connection> {
    let url = std::env::var("AMQP_URL")?;
    let (user, address) =
        url.strip_prefix("amqps://").and_then(|rest| rest.split_once('@')).context("AMQP_URL")?;
    let (user, password) = user.split_once(':').context("no password in AMQP_URL")?;
    let (host, port) = address.split_once(':').context("no port in AMQP_URL")?;
    let ca = PathBuf::from(std::env::var("AMQP_CA")?);
    let mut arguments = OpenConnectionArguments::new(host, port.parse()?, user, password);
    arguments.tls_adaptor(TlsAdaptor::without_client_auth(Some(&ca), host.to_owned())?);
    Ok(Connection::open(&arguments).await?)
}

async fn exclusive(channel: &Channel) -> Result<String> {
    let (queue, _, _) =
        channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?.context("no answer")?;
    Ok(queue)
}

async fn ready(channel: &Channel, queue: &str) -> Result<u32> {
    let arguments = QueueDeclareArguments::new(queue).passive(true).finish();
    let (_, messages, _) = channel.queue_declare(arguments).await?.context("no answer")?;
    Ok(messages)
}

/// A channel in confirm mode, and what it is told.
async fn publisher(connection: &Connection) -> Result<(Channel, UnboundedReceiver<Event>)> {
    let (sender, receiver) = unbounded_channel();
    let channel = connection.open_channel(None).await?;
    channel.register_callback(Listener(sender)).await?;
    channel.confirm_select(ConfirmSelectArguments::default()).await?;
    Ok((channel, receiver))
}

async fn publish(channel: &Channel, key: &str, body: Vec<u8>, properties: BasicProperties) -> Result<()> {
    let arguments = BasicPublishArguments::new("", key).mandatory(true).finish();
    Ok(channel.basic_publish(properties, body, arguments).await?)
}

/// Waits until messages 1 to `count` are confirmed, each once; gives what was returned meanwhile.
async fn expect(events: &mut UnboundedReceiver<Event>, count: u64) -> Result<Vec<String>> {
    let mut waiting: BTreeSet<u64> = (1..=count).collect();
    let mut returned = Vec::new();
    while !waiting.is_empty() {
        match events.recv().await.context("the channel is gone")? {
            Event::Confirmed(ack) => {
                let last = ack.delivery_tag();
                if ack.mutiple() {
                    // Some of these may have been confirmed one by one before.
                    let later = waiting.split_off(&(last + 1));
                    ensure!(!std::mem::replace(&mut waiting, later).is_empty(), "{last} confirms nothing");
                } else {
                    ensure!(waiting.remove(&last), "{last} is confirmed twice or was never sent");
                }
            }
            Event::Refused => bail!("a message was refused"),
            Event::Returned(code, body) => {
                ensure!(code == 312, "returned with {code}");
                returned.push(String::from_utf8(body)?);
            }
        }
    }
    Ok(returned)
}

// Each case closes its channels: a dropped one is closed by a task of its own, whose answer can end the connection's
// reader before the answer to its own close has come.

/// 2000 confirms, each message whole and in order.
async fn confirms(connection: &Connection) -> Result<()> {
    const COUNT: usize = 2000;
    let (channel, mut events) = publisher(connection).await?;
    let queue = exclusive(&channel).await?;
    let body = |number: usize| vec![number as u8; if number % 200 == 0 { 300_000 } else { number }];
    for number in 0..COUNT {
        let properties =
            BasicProperties::default().with_persistence(true).with_message_id(&number.to_string()).finish();
        publish(&channel, &queue, body(number), properties).await?;
    }
    ensure!(expect(&mut events, COUNT as u64).await?.is_empty(), "something was returned");
    let consumer = connection.open_channel(None).await?;
    consumer.basic_qos(BasicQosArguments::new(0, 50, false)).await?;
    let (_tag, mut deliveries) =
        consumer.basic_consume_rx(BasicConsumeArguments::new(&queue, "reader")).await?;
    for number in 0..COUNT {
        let message = deliveries.recv().await.context("the consumer ended")?;
        let deliver = message.deliver.context("no deliver")?;
        let properties = message.basic_properties.context("no properties")?;
        ensure!(
            properties.message_id() == Some(&number.to_string()),
            "{:?} came as number {number}",
            properties.message_id()
        );
        ensure!(properties.delivery_mode() == Some(2), "{number} is not persistent");
        ensure!(
            message.content.as_ref() == Some(&body(number)) && !deliver.redelivered(),
            "message {number}"
        );
        consumer.basic_ack(BasicAckArguments::new(deliver.delivery_tag(), false)).await?;
    }
    ensure!(ready(&channel, &queue).await? == 0, "messages are left");
    consumer.close().await?;
    Ok(channel.close().await?)
}

/// Each unroutable mandatory message comes back.
async fn returns(connection: &Connection) -> Result<()> {
    let (channel, mut events) = publisher(connection).await?;
    let queue = exclusive(&channel).await?;
    for number in 0..300 {
        let key = if number % 3 == 0 { format!("{queue}-nowhere") } else { queue.clone() };
        publish(&channel, &key, number.to_string().into_bytes(), BasicProperties::default()).await?;
    }
    let expected: Vec<String> = (0..300).step_by(3).map(|number| number.to_string()).collect();
    ensure!(expect(&mut events, 300).await? == expected, "other messages were returned");
    ensure!(ready(&channel, &queue).await? == 200, "not all routable messages are in the queue");
    Ok(channel.close().await?)
}

/// get counts down; what is nacked, or was with a closed channel, comes back in its place and marked.
async fn requeue(connection: &Connection) -> Result<()> {
    let (channel, mut events) = publisher(connection).await?;
    let queue = exclusive(&channel).await?;
    for number in 0..300 {
        publish(&channel, &queue, number.to_string().into_bytes(), BasicProperties::default()).await?;
    }
    expect(&mut events, 300).await?;
    let first = connection.open_channel(None).await?;
    for number in 0..300u32 {
        let (got, _, body) =
            first.basic_get(BasicGetArguments::new(&queue)).await?.context("empty too early")?;
        ensure!(
            body == number.to_string().into_bytes()
                && got.message_count() == 299 - number
                && !got.redelivered(),
            "message {number}"
        );
        if number % 3 == 0 {
            first.basic_ack(BasicAckArguments::new(got.delivery_tag(), false)).await?;
        }
    }
    ensure!(first.basic_get(BasicGetArguments::new(&queue)).await?.is_none(), "more than was published");
    first.close().await?;
    for number in (0..300).filter(|number| number % 3 != 0) {
        let (got, _, body) =
            channel.basic_get(BasicGetArguments::new(&queue)).await?.context("not given back")?;
        ensure!(body == number.to_string().into_bytes() && got.redelivered(), "{number} is not in its place");
        channel.basic_ack(BasicAckArguments::new(got.delivery_tag(), false)).await?;
    }
    Ok(channel.close().await?)
}

/// Routing by topic: each queue gets exactly its share.
async fn topics(connection: &Connection) -> Result<()> {
    let (channel, mut events) = publisher(connection).await?;
    let shares = [("*.error", 150), ("kernel.#", 100), ("#", 300)];
    let mut queues = Vec::new();
    let exchange = format!("interop-{}", std::process::id());
    channel.exchange_declare(ExchangeDeclareArguments::of_type(&exchange, ExchangeType::Topic)).await?;
    for (key, share) in shares {
        let queue = exclusive(&channel).await?;
        channel.queue_bind(QueueBindArguments::new(&queue, &exchange, key)).await?;
        queues.push((queue, share));
    }
    for number in 0..300 {
        let key = format!("{}.{}", ["kernel", "mail", "cron"][number % 3], ["error", "info"][number % 2]);
        let arguments = BasicPublishArguments::new(&exchange, &key);
        channel.basic_publish(BasicProperties::default(), number.to_string().into_bytes(), arguments).await?;
    }
    expect(&mut events, 300).await?;
    for (queue, share) in queues {
        ensure!(ready(&channel, &queue).await? == share, "{queue} should have {share}");
    }
    channel.exchange_delete(ExchangeDeleteArguments::new(&exchange)).await?;
    Ok(channel.close().await?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let case = std::env::args().nth(1).context("which case?")?;
    if case == "stranger" {
        let Err(error) = connect().await else { bail!("it let a stranger in") };
        ensure!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
        println!("ok");
        return Ok(());
    }
    let connection = connect().await?;
    match case.as_str() {
        "confirms" => confirms(&connection).await?,
        "returns" => returns(&connection).await?,
        "requeue" => requeue(&connection).await?,
        "topics" => topics(&connection).await?,
        other => bail!("no case {other}"),
    }
    connection.close().await?;
    println!("ok");
    Ok(())
}
