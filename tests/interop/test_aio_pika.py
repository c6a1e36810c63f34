"""aio-pika: robust connections over a restart, confirms, returns, iterators, priorities, exclusive use, many tasks at once."""

import asyncio
import contextlib

import aio_pika
import pytest
from aio_pika.exceptions import ChannelInvalidStateError, ChannelNotFoundEntity, ChannelPreconditionFailed, DeliveryError
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

PERSISTENT = aio_pika.DeliveryMode.PERSISTENT


def run(case):
    """Runs a case's coroutine; none takes longer than a minute."""
    asyncio.run(asyncio.wait_for(case, 40))


def connect(broker, connector=aio_pika.connect, ca=None, **options):
    return connector(broker.url, ssl_context=broker.context(ca), **options)


@contextlib.asynccontextmanager
async def channel_of(broker, **options):
    connection = await connect(broker)
    async with connection:
        yield await connection.channel(**options)


def test_a_certificate_of_another_ca_is_refused(broker, stranger_ca):
    async def case():
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(broker, ca=stranger_ca)

    run(case())


def test_a_thousand_concurrent_confirms_and_the_iterator_sees_each_once_in_order(broker, name):
    async def case():
        async with channel_of(broker) as channel, channel_of(broker) as consumer:
            await channel.declare_queue(name, durable=True)
            messages = [
                aio_pika.Message(
                    str(number).encode() * (number % 50),
                    headers={"number": number, "list": [number, {"deep": True}]},
                    message_id=str(number),
                    delivery_mode=PERSISTENT,
                )
                for number in range(1000)
            ]
            answers = await asyncio.gather(*(channel.default_exchange.publish(message, name) for message in messages))
            assert all(type(answer).__name__ == "Ack" for answer in answers)
            await consumer.set_qos(prefetch_count=64)
            queue = await consumer.get_queue(name)
            got = []
            async with queue.iterator() as iterator:
                async for message in iterator:
                    async with message.process():
                        got.append((int(message.message_id), dict(message.headers), message.body, message.redelivered))
                    if len(got) == 1000:
                        break
            expected = [(number, message.headers, message.body, False) for number, message in enumerate(messages)]
            assert got == expected
            assert (await consumer.declare_queue(name, passive=True)).declaration_result.message_count == 0
            await queue.delete()

    run(case())


def test_an_unroutable_message_is_returned_to_the_publish_that_sent_it(broker, name):
    async def case():
        async with channel_of(broker, on_return_raises=True) as channel:
            queue = await channel.declare_queue(name, auto_delete=True)

            async def publish(number):
                routing_key = name if number % 3 else f"{name}-nowhere"
                try:
                    await channel.default_exchange.publish(aio_pika.Message(str(number).encode()), routing_key)
                except DeliveryError as error:
                    assert error.message.body == str(number).encode()
                    return "returned"
                return "confirmed"

            outcomes = await asyncio.gather(*(publish(number) for number in range(300)))
            assert outcomes == ["confirmed" if number % 3 else "returned" for number in range(300)]
            assert (await channel.declare_queue(name, passive=True)).declaration_result.message_count == 200
            await queue.delete(if_empty=False)

    run(case())


def test_a_full_queue_refuses_with_a_nack(broker, name):
    async def case():
        async with channel_of(broker) as channel:
            arguments = {"x-max-length": 10, "x-overflow": "reject-publish"}
            queue = await channel.declare_queue(name, exclusive=True, arguments=arguments)
            refused = []
            for number in range(30):
                try:
                    await channel.default_exchange.publish(aio_pika.Message(str(number).encode()), name)
                except DeliveryError:
                    refused.append(number)
            assert refused == list(range(10, 30))
            assert [int((await queue.get(no_ack=True)).body) for _ in range(10)] == list(range(10))

    run(case())


def test_priorities_come_first_and_in_order_within_one(broker, name):
    async def case():
        async with channel_of(broker) as channel:
            queue = await channel.declare_queue(name, exclusive=True, arguments={"x-max-priority": 9})
            for number in range(300):
                message = aio_pika.Message(str(number).encode(), priority=number % 10)
                await channel.default_exchange.publish(message, name)
            got = [int((await queue.get(no_ack=True)).body) for _ in range(300)]
            assert got == sorted(range(300), key=lambda number: (-(number % 10), number))

    run(case())


def test_exclusive_use_is_refused_to_others_and_ends_with_the_connection(broker, name):
    async def case():
        async with channel_of(broker) as owner, channel_of(broker) as other:
            await owner.declare_queue(name, exclusive=True)
            with pytest.raises(ChannelLockedResource, match="cannot obtain exclusive access to locked queue"):
                await other.declare_queue(name, passive=True)
        async with channel_of(broker) as other:
            with pytest.raises(ChannelNotFoundEntity):
                await other.declare_queue(name, passive=True)
        async with channel_of(broker) as first, channel_of(broker) as second:
            queue = await first.declare_queue(name, auto_delete=True)
            await queue.consume(asyncio.Queue().put, exclusive=True)
            with pytest.raises(ChannelAccessRefused, match="in exclusive use"):
                await (await second.get_queue(name)).consume(asyncio.Queue().put)

    run(case())


def test_an_unequal_declaration_names_the_argument(broker, name):
    async def case():
        async with channel_of(broker) as channel:
            await channel.declare_queue(name, auto_delete=True, arguments={"x-message-ttl": 60000})
            with pytest.raises(ChannelPreconditionFailed, match="inequivalent arg 'x-message-ttl'"):
                await channel.declare_queue(name, auto_delete=True, arguments={"x-message-ttl": 1000})
        async with channel_of(broker) as channel:
            await channel.queue_delete(name)

    run(case())


def test_a_transaction_is_all_or_nothing(broker, name):
    async def case():
        async with channel_of(broker, publisher_confirms=False) as channel, channel_of(broker) as reader:
            await channel.declare_queue(name, durable=True)
            for batch in range(4):
                transaction = channel.transaction()
                await transaction.select()
                for number in range(50):
                    await channel.default_exchange.publish(aio_pika.Message(f"{batch}.{number}".encode()), name)
                await (transaction.rollback() if batch % 2 else transaction.commit())
            queue = await reader.get_queue(name)
            got = [(await queue.get(no_ack=True)).body.decode() for _ in range(100)]
            assert got == [f"{batch}.{number}" for batch in (0, 2) for number in range(50)]
            assert await queue.get(fail=False) is None
            await queue.delete()

    run(case())


def test_a_robust_connection_goes_on_after_a_restart_and_no_confirmed_message_is_lost(restartable, name):
    """Publisher and consumer come back by themselves, with their queues, bindings and consumers."""

    async def case():
        publisher = await connect(restartable, aio_pika.connect_robust, reconnect_interval=0.1)
        consumer = await connect(restartable, aio_pika.connect_robust, reconnect_interval=0.1)
        got, redelivered, everything = [], set(), asyncio.Event()
        count = 600

        async def on_message(message):
            got.append(int(message.body))
            if message.redelivered:
                redelivered.add(int(message.body))
            # What was delivered before the restart cannot be acknowledged after it: it comes again.
            with contextlib.suppress(aio_pika.exceptions.AMQPError, ChannelInvalidStateError):
                await message.ack()
            if set(got) == set(range(count)):
                everything.set()

        channel = await consumer.channel()
        await channel.set_qos(prefetch_count=20)
        exchange = await channel.declare_exchange(name, aio_pika.ExchangeType.DIRECT, durable=True)
        queue = await channel.declare_queue(name, durable=True)
        await queue.bind(exchange, "key")
        await queue.consume(on_message)
        target = await (await publisher.channel()).get_exchange(name)
        restarted = None
        for number in range(count):
            if number == count // 3:
                restarted = asyncio.create_task(asyncio.to_thread(restartable.restart))
            confirmed = False
            while not confirmed:
                try:
                    message = aio_pika.Message(str(number).encode(), delivery_mode=PERSISTENT)
                    confirmed = await asyncio.wait_for(target.publish(message, "key"), 20)
                except (aio_pika.exceptions.AMQPError, ChannelInvalidStateError, asyncio.CancelledError):
                    # aiormq cancels what waits for an answer; that must not hide this case's own end.
                    if asyncio.current_task().cancelling():
                        raise
                    await asyncio.sleep(0.05)  # a retry, as an application makes it
        await restarted
        await asyncio.wait_for(everything.wait(), 30)
        first = list(dict.fromkeys(got))
        assert first == sorted(first), "each message's first delivery is in order"
        await consumer.close()
        await publisher.close()

    run(case())
