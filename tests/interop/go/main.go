// Workloads of amqp091-go: interop-go CASE, with AMQP_URL and AMQP_CA. Says ok, or why not.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func require(holds bool, format string, values ...interface{}) {
	if !holds {
		panic(fmt.Sprintf(format, values...))
	}
}

func dial() (*amqp.Connection, error) {
	pem, err := os.ReadFile(os.Getenv("AMQP_CA"))
	must(err)
	roots := x509.NewCertPool()
	require(roots.AppendCertsFromPEM(pem), "no certificate in %s", os.Getenv("AMQP_CA"))
	return amqp.DialConfig(os.Getenv("AMQP_URL"), amqp.Config{
		Heartbeat:       5 * time.Second,
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"},
	})
}

func open() (*amqp.Connection, *amqp.Channel) {
	connection, err := dial()
	must(err)
	return connection, another(connection)
}

func another(connection *amqp.Connection) *amqp.Channel {
	channel, err := connection.Channel()
	must(err)
	return channel
}

func exclusive(channel *amqp.Channel, arguments amqp.Table) string {
	queue, err := channel.QueueDeclare("", false, false, true, false, arguments)
	must(err)
	return queue.Name
}

func ready(channel *amqp.Channel, queue string) int {
	state, err := channel.QueueInspect(queue)
	must(err)
	return state.Messages
}

// expect takes the confirms of messages 1 to count: each once, in order. (PublishWithDeferredConfirm is not used: until 1.6
// it registers a message after sending it, and waits for ever when the confirm is faster.)
func expect(confirmed <-chan amqp.Confirmation, count int) {
	for tag := 1; tag <= count; tag++ {
		confirmation := <-confirmed
		require(confirmation.Ack && confirmation.DeliveryTag == uint64(tag), "%v instead of the confirm of %d", confirmation, tag)
	}
}

// confirms: 2000 of them, each message whole and in order, consumed with a prefetch.
func confirms() {
	connection, channel := open()
	defer connection.Close()
	queue := exclusive(channel, nil)
	must(channel.Confirm(false))
	body := func(number int) []byte { return bytes.Repeat([]byte{byte(number)}, number*37%70000) }
	headers := func(number int) amqp.Table {
		return amqp.Table{"number": int64(number), "text": strconv.Itoa(number), "list": []interface{}{true, int32(number)}, "table": amqp.Table{"deep": "value"}}
	}
	const count = 2000
	confirmed := channel.NotifyPublish(make(chan amqp.Confirmation, count))
	for number := 0; number < count; number++ {
		must(channel.PublishWithContext(context.Background(), "", queue, true, false, amqp.Publishing{
			DeliveryMode: amqp.Persistent, MessageId: strconv.Itoa(number), Headers: headers(number), Body: body(number),
		}))
	}
	expect(confirmed, count)
	consumer := another(connection)
	must(consumer.Qos(50, 0, false))
	deliveries, err := consumer.Consume(queue, "", false, false, false, false, nil)
	must(err)
	for number := 0; number < count; number++ {
		delivery := <-deliveries
		require(delivery.MessageId == strconv.Itoa(number), "message %s came as number %d", delivery.MessageId, number)
		require(bytes.Equal(delivery.Body, body(number)), "the body of %d differs", number)
		require(fmt.Sprint(delivery.Headers) == fmt.Sprint(headers(number)), "the headers of %d: %v", number, delivery.Headers)
		require(!delivery.Redelivered, "%d is marked as redelivered", number)
		if number%10 == 9 {
			must(delivery.Ack(true))
		}
	}
	require(ready(channel, queue) == 0, "messages are left")
}

// returns: each unroutable mandatory message comes back, before its confirm.
func returns() {
	connection, channel := open()
	defer connection.Close()
	queue := exclusive(channel, nil)
	must(channel.Confirm(false))
	returned := channel.NotifyReturn(make(chan amqp.Return, 300))
	confirmed := channel.NotifyPublish(make(chan amqp.Confirmation, 300))
	for number := 0; number < 300; number++ {
		key := queue
		if number%3 == 0 {
			key += "-nowhere"
		}
		must(channel.PublishWithContext(context.Background(), "", key, true, false, amqp.Publishing{Body: []byte(strconv.Itoa(number))}))
		confirmation := <-confirmed
		require(confirmation.Ack && confirmation.DeliveryTag == uint64(number+1), "confirm %v of %d", confirmation, number)
		if number%3 == 0 {
			select {
			case back := <-returned:
				require(string(back.Body) == strconv.Itoa(number) && back.ReplyCode == 312 && back.ReplyText == "NO_ROUTE", "%v of %d", back, number)
			default:
				require(false, "%d was confirmed before it was returned", number)
			}
		}
	}
	require(len(returned) == 0, "more returns than unroutable messages")
	require(ready(channel, queue) == 200, "%d messages are in the queue", ready(channel, queue))
}

// requeue: what is rejected comes back in its place and is marked; the rest goes to the dead letters.
func requeue() {
	connection, channel := open()
	defer connection.Close()
	dead := exclusive(channel, nil)
	queue := exclusive(channel, amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
	for number := 0; number < 200; number++ {
		must(channel.PublishWithContext(context.Background(), "", queue, false, false, amqp.Publishing{Body: []byte(strconv.Itoa(number))}))
	}
	for number := 0; number < 200; number++ {
		message, ok, err := channel.Get(queue, false)
		must(err)
		require(ok && string(message.Body) == strconv.Itoa(number) && message.MessageCount == uint32(199-number), "%v", message)
		if number%2 == 0 {
			must(message.Reject(false))
		}
	}
	must(channel.Recover(true))
	for number := 1; number < 200; number += 2 {
		message, ok, err := channel.Get(queue, true)
		must(err)
		require(ok && message.Redelivered && string(message.Body) == strconv.Itoa(number), "%v instead of %d", message, number)
	}
	for number := 0; number < 200; number += 2 {
		message, ok, err := channel.Get(dead, true)
		must(err)
		require(ok && string(message.Body) == strconv.Itoa(number), "%v instead of %d", message, number)
		death := message.Headers["x-death"].([]interface{})[0].(amqp.Table)
		require(death["reason"] == "rejected" && death["count"] == int64(1) && death["queue"] == queue, "%v", death)
	}
}

// transactions: all or nothing, for publishes and for acknowledgements.
func transactions() {
	connection, channel := open()
	defer connection.Close()
	queue := exclusive(channel, nil)
	reader := another(connection)
	must(channel.Tx())
	for batch := 0; batch < 6; batch++ {
		for number := 0; number < 50; number++ {
			text := fmt.Sprintf("%d.%d", batch, number)
			must(channel.PublishWithContext(context.Background(), "", queue, false, false, amqp.Publishing{Body: []byte(text)}))
		}
		require(ready(reader, queue) == batch/2*50, "a transaction shows before its commit")
		if batch%2 == 0 {
			must(channel.TxRollback())
		} else {
			must(channel.TxCommit())
		}
	}
	for batch := 1; batch < 6; batch += 2 {
		for number := 0; number < 50; number++ {
			message, ok, err := reader.Get(queue, true)
			must(err)
			require(ok && string(message.Body) == fmt.Sprintf("%d.%d", batch, number), "%s", message.Body)
		}
	}
}

// concurrent: eight goroutines with channels of their own on one connection, four consumers, each message once.
func concurrent() {
	connection, channel := open()
	defer connection.Close()
	queue := exclusive(channel, nil)
	var group sync.WaitGroup
	for producer := 0; producer < 8; producer++ {
		group.Add(1)
		go func(first int) {
			defer group.Done()
			own := another(connection)
			must(own.Confirm(false))
			confirmed := own.NotifyPublish(make(chan amqp.Confirmation, 250))
			for number := first; number < first+250; number++ {
				must(own.PublishWithContext(context.Background(), "", queue, false, false, amqp.Publishing{Body: []byte(strconv.Itoa(number))}))
			}
			expect(confirmed, 250)
		}(producer * 250)
	}
	all := make(chan amqp.Delivery)
	for consumer := 0; consumer < 4; consumer++ {
		own := another(connection)
		must(own.Qos(10, 0, false))
		deliveries, err := own.Consume(queue, "", false, false, false, false, nil)
		must(err)
		go func() {
			for delivery := range deliveries {
				all <- delivery
			}
		}()
	}
	seen := map[string]bool{}
	for len(seen) < 2000 {
		delivery := <-all
		require(!seen[string(delivery.Body)] && !delivery.Redelivered, "%s came twice", delivery.Body)
		seen[string(delivery.Body)] = true
		must(delivery.Ack(false))
	}
	group.Wait()
	require(ready(channel, queue) == 0, "messages are left")
}

// faults: the code and text of a refusal reach the caller; the connection stays; a deleted queue cancels its consumer.
func faults() {
	connection, channel := open()
	defer connection.Close()
	queue := exclusive(channel, amqp.Table{"x-max-length": int32(5)})
	other := another(connection)
	closed := other.NotifyClose(make(chan *amqp.Error, 1))
	_, err := other.QueueDeclarePassive(queue+"-missing", false, false, false, false, nil)
	var refusal *amqp.Error
	require(errors.As(err, &refusal) && refusal.Code == 404 && strings.HasPrefix(refusal.Reason, "NOT_FOUND - no queue"), "%v", err)
	require((<-closed).Code == 404, "the channel's close tells another code")
	cancelled := channel.NotifyCancel(make(chan string, 1))
	_, err = channel.Consume(queue, "watched", true, false, false, false, nil)
	must(err)
	_, err = another(connection).QueueDelete(queue, false, false, false)
	must(err)
	require(<-cancelled == "watched", "another consumer was cancelled")
	require(!connection.IsClosed(), "the connection is closed")
}

// stranger: a certificate of another CA is refused.
func stranger() {
	_, err := dial()
	var unknown x509.UnknownAuthorityError
	require(errors.As(err, &unknown), "%v", err)
}

func main() {
	cases := map[string]func(){
		"confirms": confirms, "returns": returns, "requeue": requeue, "transactions": transactions,
		"concurrent": concurrent, "faults": faults, "stranger": stranger,
	}
	log.SetFlags(0)
	cases[os.Args[1]]()
	fmt.Println("ok")
}
