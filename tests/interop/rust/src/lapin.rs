//! Workloads of lapin: `interop-lapin CASE`, with AMQP_URL and AMQP_CA. Says ok, or why not.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use futures_lite::StreamExt;
use lapin::message::Delivery;
use lapin::options::*;
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, PublisherConfirm,
};

async fn connect() -> Result<Connection> {
    // lapin wants the virtual host in the address.
    let url = format!("{}/%2f", std::env::var("AMQP_URL")?);
    let ca = std::fs::read_to_string(std::env::var("AMQP_CA")?)?;
    let tls = OwnedTLSConfig { identity: None, cert_chain: Some(ca) };
    let runtime = lapin::runtime::default_runtime()?;
    Ok(Connection::connect_with_config(&url, ConnectionProperties::default(), tls, runtime).await?)
}

async fn exclusive(channel: &Channel, arguments: FieldTable) -> Result<ShortString> {
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    Ok(channel.queue_declare("".into(), options, arguments).await?.name().clone())
}

async fn ready(channel: &Channel, queue: &ShortString) -> Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    Ok(channel.queue_declare(queue.clone(), options, FieldTable::default()).await?.message_count())
}

async fn publish(
    channel: &Channel,
    key: ShortString,
    body: &[u8],
    properties: BasicProperties,
) -> Result<PublisherConfirm> {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    Ok(channel.basic_publish("".into(), key, options, body, properties).await?)
}

async fn consume(channel: &Channel, queue: &ShortString) -> Result<lapin::Consumer> {
    let options = BasicConsumeOptions::default();
    Ok(channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await?)
}

/// lapin closes a channel that is dropped, and then cannot close its connection meanwhile: they are closed in order.
async fn done(channels: impl IntoIterator<Item = Channel>) -> Result<()> {
    for channel in channels {
        channel.close(200, "done".into()).await?;
    }
    Ok(())
}

fn number_of(delivery: &Delivery) -> Result<usize> {
    Ok(std::str::from_utf8(&delivery.data)?.parse()?)
}

/// 2000 confirms, each message whole and in order, bodies of up to several frames.
async fn confirms(connection: &Connection) -> Result<()> {
    const COUNT: usize = 2000;
    let channel = connection.create_channel().await?;
    let queue = exclusive(&channel, FieldTable::default()).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let body = |number: usize| vec![number as u8; if number % 100 == 0 { 300_000 } else { number }];
    let properties = |number: usize| {
        let mut headers = FieldTable::default();
        headers.insert("number".into(), AMQPValue::LongLongInt(number as i64));
        headers.insert("text".into(), AMQPValue::LongString(number.to_string().into()));
        BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(number.to_string().into())
            .with_headers(headers)
    };
    let mut waiting = Vec::new();
    for number in 0..COUNT {
        waiting.push(publish(&channel, queue.clone(), &body(number), properties(number)).await?);
    }
    for confirm in waiting {
        ensure!(matches!(confirm.await?, Confirmation::Ack(None)), "not acknowledged");
    }
    let consumer_channel = connection.create_channel().await?;
    consumer_channel.basic_qos(50, BasicQosOptions::default()).await?;
    let mut consumer = consume(&consumer_channel, &queue).await?;
    for number in 0..COUNT {
        let delivery = consumer.next().await.context("the consumer ended")??;
        ensure!(
            delivery.properties == properties(number),
            "properties of {number}: {:?}",
            delivery.properties
        );
        ensure!(delivery.data == body(number) && !delivery.redelivered, "message {number}");
        delivery.ack(BasicAckOptions { multiple: number % 2 == 1 }).await?;
    }
    ensure!(ready(&channel, &queue).await? == 0, "messages are left");
    done([consumer_channel, channel]).await
}

/// Each unroutable mandatory message comes back with its own confirm.
async fn returns(connection: &Connection) -> Result<()> {
    let channel = connection.create_channel().await?;
    let queue = exclusive(&channel, FieldTable::default()).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    for number in 0..300 {
        let key = if number % 3 == 0 { format!("{queue}-nowhere").into() } else { queue.clone() };
        let body = number.to_string();
        // One at a time: lapin gives a returned message to whichever confirm comes next.
        match publish(&channel, key, body.as_bytes(), BasicProperties::default()).await?.await? {
            Confirmation::Ack(Some(returned)) if number % 3 == 0 => {
                let is_it = number_of(&returned.delivery)? == number;
                ensure!(is_it && returned.reply_code == 312, "{returned:?} for {number}");
            }
            Confirmation::Ack(None) if number % 3 != 0 => {}
            other => bail!("{other:?} for {number}"),
        }
    }
    ensure!(ready(&channel, &queue).await? == 200, "not all routable messages are in the queue");
    done([channel]).await
}

/// What is rejected comes back in its place and marked; a closed channel gives back what it had.
async fn requeue(connection: &Connection) -> Result<()> {
    let channel = connection.create_channel().await?;
    let queue = exclusive(&channel, FieldTable::default()).await?;
    for number in 0..300 {
        publish(&channel, queue.clone(), number.to_string().as_bytes(), BasicProperties::default()).await?;
    }
    let first = connection.create_channel().await?;
    for number in 0..300 {
        let message =
            first.basic_get(queue.clone(), BasicGetOptions::default()).await?.context("empty too early")?;
        ensure!(
            number_of(&message.delivery)? == number && message.message_count == 299 - number as u32,
            "message {number}"
        );
        match number % 3 {
            0 => message.ack(BasicAckOptions::default()).await?,
            1 => message.nack(BasicNackOptions { requeue: true, ..Default::default() }).await?,
            // Still with the channel when it closes.
            _ => true,
        };
        if number % 3 == 1 {
            let again = first
                .basic_get(queue.clone(), BasicGetOptions { no_ack: false })
                .await?
                .context("not given back")?;
            ensure!(
                number_of(&again.delivery)? == number && again.delivery.redelivered,
                "{number} is not back in its place"
            );
        }
    }
    first.close(200, "done".into()).await?;
    let mut consumer = consume(&channel, &queue).await?;
    for number in (0..300).filter(|number| number % 3 != 0) {
        let delivery = consumer.next().await.context("the consumer ended")??;
        ensure!(number_of(&delivery)? == number && delivery.redelivered, "{number} is not in its place");
        delivery.ack(BasicAckOptions::default()).await?;
    }
    done([channel]).await
}

/// Four consumers on one queue and eight publishing tasks: each message once.
async fn concurrent(connection: &Connection) -> Result<()> {
    let channel = connection.create_channel().await?;
    let queue = exclusive(&channel, FieldTable::default()).await?;
    let mut producers = Vec::new();
    for first in (0..2000).step_by(250) {
        let (own, queue) = (connection.create_channel().await?, queue.clone());
        producers.push(tokio::spawn(async move {
            own.confirm_select(ConfirmSelectOptions::default()).await?;
            for number in first..first + 250 {
                let body = number.to_string();
                let confirm =
                    publish(&own, queue.clone(), body.as_bytes(), BasicProperties::default()).await?;
                ensure!(matches!(confirm.await?, Confirmation::Ack(None)), "{number} is not acknowledged");
            }
            done([own]).await
        }));
    }
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..4 {
        let own = connection.create_channel().await?;
        own.basic_qos(10, BasicQosOptions::default()).await?;
        let (mut consumer, sender) = (consume(&own, &queue).await?, sender.clone());
        tokio::spawn(async move {
            let _channel = own;
            while let Some(Ok(delivery)) = consumer.next().await {
                let _ = delivery.ack(BasicAckOptions::default()).await;
                let _ = sender.send(delivery);
            }
        });
    }
    let mut seen = BTreeSet::new();
    while seen.len() < 2000 {
        let delivery = receiver.recv().await.context("no consumer is left")?;
        ensure!(!delivery.redelivered && seen.insert(number_of(&delivery)?), "a message came twice");
    }
    for producer in producers {
        producer.await??;
    }
    ensure!(ready(&channel, &queue).await? == 0, "messages are left");
    done([channel]).await
}

/// A refusal closes its channel with RabbitMQ's code and text, and nothing else.
async fn faults(connection: &Connection) -> Result<()> {
    let channel = connection.create_channel().await?;
    let queue = exclusive(&channel, FieldTable::default()).await?;
    let other = connection.create_channel().await?;
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let missing: ShortString = format!("{queue}-missing").into();
    let Err(error) = other.queue_declare(missing, options, FieldTable::default()).await else {
        bail!("it is there")
    };
    let ErrorKind::ProtocolError(refusal) = error.kind() else { bail!("{error}") };
    ensure!(
        refusal.get_id() == 404 && refusal.get_message().as_str().starts_with("NOT_FOUND - no queue"),
        "{refusal}"
    );
    ensure!(
        connection.status().connected() && ready(&channel, &queue).await? == 0,
        "the connection suffered"
    );
    done([channel]).await
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
        "concurrent" => concurrent(&connection).await?,
        "faults" => faults(&connection).await?,
        other => bail!("no case {other}"),
    }
    connection.close(200, "done".into()).await?;
    println!("ok");
    Ok(())
}
